// The kernels of one instruction set: compiled once for each, with ALCS_LANES, ALCS_NAME and
// ALCS_TABLE set by the build.
#include "conv_k1.hpp"
#include "conv_k2.hpp"
#include "depthwise.hpp"
#include "element.hpp"
#include "linear.hpp"
#include "peak.hpp"
#include "pooling.hpp"
#include "stage.hpp"

namespace alcs {

extern const Kernels ALCS_TABLE;

const Kernels ALCS_TABLE = {
    ALCS_NAME, kLanes, conv_k1_tiles, conv_k1, conv_k2_tiles, conv_k2,
    depthwise, pool,   element,       linear,  stage,         multiply_add,
};

}  // namespace alcs
