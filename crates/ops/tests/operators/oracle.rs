//! candle as the oracle: its autograd over the plain, differentiable forms of its operators.

use candle_core::{Device, Shape, Tensor, Var, WithDType};
use tessera_ops::Float;

/// A leaf of candle's graph.
pub fn variable<T: WithDType>(values: &[T], shape: impl Into<Shape>) -> Var {
    Var::from_slice(values, shape, &Device::Cpu).unwrap()
}

/// A constant.
pub fn constant<T: WithDType>(values: &[T], shape: impl Into<Shape>) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

/// All elements in row-major order.
pub fn elements<T: WithDType>(tensor: &Tensor) -> Vec<T> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The gradients of Σ output·cotangent.
pub fn gradients<T: Float + WithDType>(output: &Tensor, cotangent: &[T], variables: &[&Var]) -> Vec<Vec<T>> {
    let cotangent = constant(cotangent, output.shape());
    let gradients = (output * cotangent).unwrap().sum_all().unwrap().backward().unwrap();
    variables.iter().map(|variable| elements(gradients.get(variable).unwrap())).collect()
}
