// The part of oneDNN's C interface that `convolution.cpp` calls. The library's package has no header files.
// Names, order and values are those of oneDNN 3 (its documentation: oneapi-src.github.io/oneDNN).

#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct dnnl_engine;
struct dnnl_stream;
struct dnnl_memory;
struct dnnl_memory_desc;
struct dnnl_primitive;
struct dnnl_primitive_desc;
struct dnnl_primitive_attr;
struct dnnl_post_ops;

struct dnnl_exec_arg_t {
  int argument;
  dnnl_memory* memory;
};

int dnnl_engine_create(dnnl_engine**, int kind, size_t index);
int dnnl_stream_create(dnnl_stream**, dnnl_engine*, unsigned flags);
int dnnl_stream_wait(dnnl_stream*);
int dnnl_memory_desc_create_with_strides(dnnl_memory_desc**, int axes, const int64_t* sizes, int type,
                                         const int64_t* strides);
int dnnl_memory_desc_create_with_tag(dnnl_memory_desc**, int axes, const int64_t* sizes, int type, int tag);
int dnnl_memory_desc_clone(dnnl_memory_desc**, const dnnl_memory_desc*);
int dnnl_memory_desc_destroy(dnnl_memory_desc*);
int dnnl_memory_desc_equal(const dnnl_memory_desc*, const dnnl_memory_desc*);
size_t dnnl_memory_desc_get_size(const dnnl_memory_desc*);
int dnnl_memory_create(dnnl_memory**, const dnnl_memory_desc*, dnnl_engine*, void* data);
int dnnl_memory_set_data_handle(dnnl_memory*, void* data);
int dnnl_memory_destroy(dnnl_memory*);
int dnnl_primitive_attr_create(dnnl_primitive_attr**);
int dnnl_primitive_attr_destroy(dnnl_primitive_attr*);
int dnnl_primitive_attr_set_scratchpad_mode(dnnl_primitive_attr*, int mode);
int dnnl_primitive_attr_set_post_ops(dnnl_primitive_attr*, const dnnl_post_ops*);
int dnnl_post_ops_create(dnnl_post_ops**);
int dnnl_post_ops_destroy(dnnl_post_ops*);
int dnnl_post_ops_append_binary(dnnl_post_ops*, int algorithm, const dnnl_memory_desc* operand);
int dnnl_post_ops_append_eltwise(dnnl_post_ops*, int algorithm, float alpha, float beta);
int dnnl_convolution_forward_primitive_desc_create(dnnl_primitive_desc**, dnnl_engine*, int propagation, int algorithm,
                                                   const dnnl_memory_desc* source, const dnnl_memory_desc* weights,
                                                   const dnnl_memory_desc* bias, const dnnl_memory_desc* destination,
                                                   const int64_t* strides, const int64_t* dilations,
                                                   const int64_t* before, const int64_t* after,
                                                   const dnnl_primitive_attr*);
int dnnl_convolution_backward_data_primitive_desc_create(dnnl_primitive_desc**, dnnl_engine*, int algorithm,
                                                         const dnnl_memory_desc* of_source,
                                                         const dnnl_memory_desc* weights,
                                                         const dnnl_memory_desc* of_destination, const int64_t* strides,
                                                         const int64_t* dilations, const int64_t* before,
                                                         const int64_t* after, const dnnl_primitive_desc* forward,
                                                         const dnnl_primitive_attr*);
int dnnl_convolution_backward_weights_primitive_desc_create(
    dnnl_primitive_desc**, dnnl_engine*, int algorithm, const dnnl_memory_desc* source,
    const dnnl_memory_desc* of_weights, const dnnl_memory_desc* of_bias, const dnnl_memory_desc* of_destination,
    const int64_t* strides, const int64_t* dilations, const int64_t* before, const int64_t* after,
    const dnnl_primitive_desc* forward, const dnnl_primitive_attr*);
int dnnl_reorder_primitive_desc_create(dnnl_primitive_desc**, const dnnl_memory_desc* from, dnnl_engine*,
                                       const dnnl_memory_desc* to, dnnl_engine*, const dnnl_primitive_attr*);
const dnnl_memory_desc* dnnl_primitive_desc_query_md(const dnnl_primitive_desc*, int what, int index);
int dnnl_primitive_desc_destroy(dnnl_primitive_desc*);
int dnnl_primitive_create(dnnl_primitive**, const dnnl_primitive_desc*);
int dnnl_primitive_execute(const dnnl_primitive*, dnnl_stream*, int count, const dnnl_exec_arg_t*);

}  // extern "C"

namespace dnnl {

enum Type { BFLOAT16 = 2, FLOAT32 = 3 };
enum Propagation { TRAINING = 64, INFERENCE = 96 };
enum Query {
  SOURCE_OF = 129,
  GRADIENT_OF_SOURCE_OF = 130,
  WEIGHTS_OF = 131,
  GRADIENT_OF_WEIGHTS_OF = 132,
  SCRATCHPAD_OF = 136
};
enum Argument {
  SOURCE = 1,
  DESTINATION = 17,
  WEIGHTS = 33,
  BIAS = 41,
  SCRATCHPAD = 80,
  GRADIENT_OF_SOURCE = 129,
  GRADIENT_OF_DESTINATION = 145,
  GRADIENT_OF_WEIGHTS = 161,
  OPERAND_OF_FIRST_POST_OP = 32768 | 2,
};
constexpr int CPU = 1, IN_ORDER = 1, DIRECT = 1, RELU = 0x20, CLIP = 46, ADD = 0x1fff0, ANY_LAYOUT = 1, CALLER_OWNS_SCRATCHPAD = 1;

}  // namespace dnnl
