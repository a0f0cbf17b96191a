// Softmax regression by stochastic gradient descent, one row at a time, without the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <vector>

#include "softxent.h"  // after Python.h, which pybind11 includes

namespace py = pybind11;
using Floats = py::array_t<float, py::array::c_style>;
using Labels = py::array_t<std::int64_t, py::array::c_style>;

// Changes weights (C, D) and bias (C,) by `epochs` passes over the rows; returns the mean loss of the last pass.
static double train(const Floats &inputs, const Labels &labels, Floats &weights, Floats &bias, float rate, int epochs)
{
    const py::ssize_t n = inputs.shape(0), n_features = inputs.shape(1), n_classes = weights.shape(0);
    const float *x = inputs.data();
    const std::int64_t *y = labels.data();
    float *w = weights.mutable_data(), *b = bias.mutable_data();
    std::vector<float> z(static_cast<std::size_t>(n_classes));  // the logits of a row, then the gradient in their place
    double total = 0;
    int status = SOFTXENT_OK;

    softxent_call call = softxent_call_for(SOFTXENT_FLOAT32, z.data(), 1, n_classes);
    call.result = SOFTXENT_GRADIENT;
    call.reduction = SOFTXENT_SUM;
    call.grad = softxent_contiguous(z.data(), n_classes, SOFTXENT_FLOAT32);
    {
        py::gil_scoped_release without_gil;
        for (int epoch = 0; epoch < epochs && status == SOFTXENT_OK; ++epoch) {
            total = 0;
            for (py::ssize_t i = 0; i < n && status == SOFTXENT_OK; ++i) {
                const float *row = x + i * n_features;
                for (py::ssize_t c = 0; c < n_classes; ++c) {
                    float sum = b[c];
                    for (py::ssize_t k = 0; k < n_features; ++k) sum += w[c * n_features + k] * row[k];
                    z[static_cast<std::size_t>(c)] = sum;
                }
                double loss = 0;
                call.labels = y + i;
                status = softxent_run(&call, nullptr, 0, &loss);
                if (status != SOFTXENT_OK) break;
                total += loss;
                for (py::ssize_t c = 0; c < n_classes; ++c) {
                    const float step = rate * z[static_cast<std::size_t>(c)];
                    b[c] -= step;
                    for (py::ssize_t k = 0; k < n_features; ++k) w[c * n_features + k] -= step * row[k];
                }
            }
        }
    }
    if (status != SOFTXENT_OK) throw std::invalid_argument(softxent_error_text(status));
    return total / static_cast<double>(n);
}

PYBIND11_MODULE(regression_cpp, module, py::mod_gil_not_used())
{
    if (softxent_import() < 0) throw py::error_already_set();
    module.def("train", &train);
}
