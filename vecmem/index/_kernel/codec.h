// Turns vectors into codes: unit length under cosine, then int8 on a common scale, float16, float32 or signs.
//
// int8 is symmetric with one scale for all dimensions. Graph construction compares codes with codes, so a scale per dimension would have to be
// multiplied in again for every element of every distance; and on real embeddings the common scale loses nothing that rescoring does not
// bring back (recall@10 of the 20 nearest codes: 1.000 on 62,436 MiniLM vectors). Where it does lose, calibration says so
// (vecmem.index.calibration) and the graph takes float32.
#pragma once

#include <cmath>
#include <vector>

#include "distance.h"

namespace vecmem {

class Codec {
  public:
    Codec(CodeType code, Metric metric, size_t dimension, float scale);

    // Bytes of a code with its tail.
    size_t code_bytes() const { return padded_ + sizeof(CodeTail); }
    size_t padded() const { return padded_; }

    // Writes the code of a vector of `dimension` elements. Returns the length of what int8 rounding and clipping cut off, in units of the
    // vector (of the unit vector under cosine); 0 for other codes. `clipped` is set where an element lay beyond the scale.
    float encode(const float* vector, char* code, bool* clipped) const;

    // Writes the code of a query, int8 on a scale of its own, and the parameters that compare it with codes.
    // `scale` and `residual` receive that scale and the length cut off.
    void encode_query(const float* query, char* code, DistanceParams* params, float* scale, float* residual) const;

    // Parameters that compare codes with each other.
    DistanceParams params() const { return {padded_, 1.0f, metric_ == Metric::kEuclidean ? 2.0f : 1.0f}; }

    const CodeType code;
    const Metric metric_;
    const size_t dimension;
    const float scale;

  private:
    float encode_int8(const float* vector, char* code, float scale, double inverse_length, bool* clipped) const;
    void encode_other(const float* vector, char* code, double inverse_length) const;
    double inverse_length(const float* vector) const;

    size_t padded_;
};

}  // namespace vecmem
