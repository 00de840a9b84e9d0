"""A real federated round with Flower, in this process, and a gate in front of the upload.

`AuditMod` is a client mod: it sees the weights that the server sent and those that the client is
about to send back, audits the difference, and can block the upload::

    app = ClientApp(mods=[AuditMod(spec, lr=0.1, max_psnr_db=20)])

`LocalGrid` runs the client apps in this process, one after another, under Flower's own strategies:
no server process, no simulation engine. `vision_client` is a client for trying both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor, nn

from april.auditing import Report, audit
from april.client import local_sgd
from april.readers import leaking_names
from april.spec import ViTSpec
from april.updates import check_shapes, from_state_dicts
from effcv.errors import ArgumentError, CheckFailed, DataError

_RUN, _SERVER = 1, 0  # ids that Flower's own simulation uses likewise
_ALIKE = 0.5  # cosine of weights before and after training; a delta's is about 0
BLOCKED = 451  # code of the error reply that takes the place of a blocked upload
_NODE = 1  # id of the first client of a `LocalGrid`


class AuditMod:
    """A Flower client mod that audits each training reply before it leaves the client.

    A reply whose picture would be recovered better than the limit, or that cannot be audited, does
    not leave: the server receives an error message with the reason in its place.

    Attributes:
        reports: Of every reply that was audited, in order.
        failures: Why a reply could not be audited, in order; without a limit it left all the same.

    Args:
        spec: Of the model that is trained.
        lr: Learning rate of the client's SGD.
        momentum: Of the client's SGD.
        weight_decay: Of the client's SGD.
        steps: Local steps.
        optimizer: Anything but ``"sgd"`` is refused, see `april.updates.from_state_dicts`.
        max_psnr_db: Limit in dB; None measures only.

    Raises:
        ArgumentError: A setting is out of range, or the optimizer is not linear in the gradients.
    """

    def __init__(
        self,
        spec: ViTSpec,
        *,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        steps: int = 1,
        optimizer: str = "sgd",
        max_psnr_db: float | None = None,
    ) -> None:
        if not isinstance(spec, ViTSpec):
            raise ArgumentError(f"AuditMod needs a ViTSpec (april.spec_of), found {type(spec)}")
        if max_psnr_db is not None and not math.isfinite(max_psnr_db):
            raise ArgumentError(f"a limit in dB expected, found {max_psnr_db}")
        self.spec = spec
        self.max_psnr_db = max_psnr_db
        self.reports: list[Report] = []
        self.failures: list[str] = []
        self._training: dict[str, Any] = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps,
            "optimizer": optimizer,
        }  # fmt: skip
        from_state_dicts({}, {}, **self._training)  # refuses now what it would refuse each round

    def __call__(
        self, message: Message, context: Context, call_next: Callable[[Message, Context], Message]
    ) -> Message:
        """Lets the client train, audits its reply, and passes it on or blocks it."""
        if message.metadata.message_type.partition(".")[0] != MessageType.TRAIN:
            return call_next(message, context)
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        try:
            report = self._audit(message, reply)
            self.reports.append(report)
            if self.max_psnr_db is not None:
                report.check(self.max_psnr_db)
        except CheckFailed as failed:
            return Message(Error(BLOCKED, f"upload blocked: {failed}"), reply_to=message)
        except Exception as error:  # whatever it is: what was not audited must not leave
            self.failures.append(str(error))
            if self.max_psnr_db is not None:
                reason = f"upload blocked, it cannot be audited: {error}"
                return Message(Error(BLOCKED, reason), reply_to=message)
        return reply

    def _audit(self, message: Message, reply: Message) -> Report:
        before, after = state_of(message), state_of(reply)
        check_shapes(
            {name: tuple(w.shape) for name, w in after.items()},
            {name: tuple(w.shape) for name, w in before.items()},
            what="the weights in the reply",
        )
        _check_weights(before, after, self.spec)
        read = leaking_names(self.spec)  # the rest of a large model is neither copied nor kept
        update = from_state_dicts(
            {name: w for name, w in before.items() if name in read},
            {name: w for name, w in after.items() if name in read},
            **self._training,
        )
        return audit(update, self.spec)


def _check_weights(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], spec: ViTSpec
) -> None:
    """Refuses a reply that is no weights near those sent: its difference would mean nothing.

    Raises:
        DataError: The patch projection points elsewhere: a delta or a gradient was uploaded.
    """
    if spec.patch_weight not in before or spec.patch_weight not in after:
        return
    sent, found = (state[spec.patch_weight].flatten().double() for state in (before, after))
    if sent.any() and float(torch.cosine_similarity(sent, found, dim=0)) < _ALIKE:
        raise DataError(
            f"{spec.patch_weight} in the reply is unlike what was sent: weights after training are "
            "expected, not a delta or a gradient"
        )


def state_of(message: Message) -> dict[str, Tensor]:
    """Returns the weights in a message, by name.

    Raises:
        DataError: The message holds no array record, or more than one.
    """
    records = list(message.content.array_records.values())
    if len(records) != 1:
        raise DataError(f"a message with one array record expected, found {len(records)}")
    return dict(records[0].to_torch_state_dict())


def vision_client(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    lr: float,
    momentum: float = 0.0,
    mods: Sequence[Any] = (),
) -> ClientApp:
    """Makes a client that takes the server's weights, trains by SGD and sends its own back.

    Args:
        model: Any module with the server's architecture; it is overwritten.
        batches: The client's private data: normalised pictures and labels, one batch a step.
        lr: Learning rate.
        momentum: Of SGD.
        mods: Flower mods, outermost first.
    """
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model.load_state_dict(state_of(message))
        local_sgd(model, list(batches), lr=lr, momentum=momentum)
        metrics = MetricRecord({"num-examples": sum(len(labels) for _, labels in batches)})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict())})
        content["metrics"] = metrics
        return Message(content, reply_to=message)

    return app


@dataclass
class LocalGrid(Grid):
    """Runs client apps in this process and keeps what passed between them and the server.

        with LocalGrid(apps) as grid:
            FedAvg(fraction_evaluate=0.0).start(grid, ArrayRecord(model.state_dict()), 3)

    Attributes:
        apps: The clients; their node ids count from 1.
        sent: Messages of the server, in order.
        received: Replies, in the same order; this is what an honest but curious server sees.
    """

    apps: Sequence[ClientApp]
    sent: list[Message] = field(default_factory=list)
    received: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._run: Any = None
        self._contexts = {
            node: Context(
                run_id=_RUN, node_id=node, node_config={}, state=RecordDict(), run_config={}
            )
            for node in self.get_node_ids()
        }

    def __enter__(self) -> Self:
        """Gives this process the identity that Flower's runners give theirs; messages carry it."""
        self._before = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = _RUN, _RUN, _SERVER
        return self

    def __exit__(self, *_: object) -> None:
        """Takes it away again."""
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = self._before

    def get_node_ids(self) -> Iterable[int]:
        """Returns the clients' ids."""
        return list(range(_NODE, _NODE + len(self.apps)))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hands each message to its client and returns an id for each reply."""
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            self.sent.append(message)
            self.received.append(self.apps[node - _NODE](message, self._contexts[node]))
            ids.append(str(len(self.received) - 1))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the replies of those ids; they are there as soon as the messages are pushed."""
        return [self.received[int(place)] for place in message_ids]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Hands each message to its client and returns the replies."""
        return self.pull_messages(self.push_messages(messages))

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Makes a message for a client."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def set_run(self, run: Any) -> None:
        """Keeps what a ServerApp says of its run; nothing here needs it."""
        self._run = run

    @property
    def run(self) -> Any:
        """What `set_run` was given, None without."""
        return self._run


@dataclass(frozen=True)
class Round:
    """What a round left behind.

    Attributes:
        before: The weights that the server sent.
        replies: What came back, one a client, in the order of the clients.
        refused: Why a client sent an error instead, by its place.
    """

    before: dict[str, Tensor]
    replies: list[Message]
    refused: dict[int, str]


def federated_round(model: nn.Module, apps: Sequence[ClientApp]) -> Round:
    """Runs one round of FedAvg over the clients, in this process.

    Args:
        model: The server's model; it takes the average of those that answered, if it is finite.
        apps: The clients.
    """
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    strategy = FedAvg(
        fraction_evaluate=0.0, min_train_nodes=len(apps), min_available_nodes=len(apps)
    )
    with LocalGrid(apps) as grid:
        messages = strategy.configure_train(1, ArrayRecord(before), ConfigRecord(), grid)
        ordered = sorted(messages, key=lambda message: int(message.metadata.dst_node_id))
        replies = list(grid.send_and_receive(ordered))
    refused = {
        place: str(reply.error.reason) for place, reply in enumerate(replies) if reply.has_error()
    }
    arrays, _ = strategy.aggregate_train(1, replies)
    if arrays is not None:
        average = arrays.to_torch_state_dict()
        if all(bool(torch.isfinite(t).all()) for t in average.values() if t.is_floating_point()):
            model.load_state_dict(average)
    return Round(before, replies, refused)
