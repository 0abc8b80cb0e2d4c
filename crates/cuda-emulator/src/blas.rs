//! The matrix products of cuBLAS: inputs widened, sums taken by ascending k in f32 (or f64), the result rounded once.
//! The order of cuBLAS's own sums is not known.

use std::ops::{Add, Mul};

use half::{bf16, f16};

use crate::number::{Half, bf16_from_f32};
use crate::{Emulator, EmulatorError};

/// Types of a matrix's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MatrixType {
    F16,
    Bf16,
    F32,
    F64,
}

/// A matrix in device memory, by columns: element (i, j) lies at i + j · `stride`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix {
    pub address: u64,
    pub element: MatrixType,
    /// Elements from one column to the next.
    pub stride: usize,
    /// Elements from one matrix of a batch to the next.
    pub batch_stride: i64,
    pub transposed: bool,
}

/// C = α·op(A)·op(B) + β·C, of m × k and k × n, for each matrix of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    pub a: Matrix,
    pub b: Matrix,
    pub c: Matrix,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub alpha: f64,
    pub beta: f64,
    pub batch: usize,
}

impl Product {
    /// Runs on the device; sums in f64 if C has that type.
    pub fn run(&self, device: &mut Emulator) -> Result<(), EmulatorError> {
        for index in 0..self.batch {
            let [a, b, c] = [self.a, self.b, self.c].map(|matrix| matrix.of_batch(index));
            if self.c.element == MatrixType::F64 {
                self.run_one::<f64>(device, a, b, c)?;
            } else {
                self.run_one::<f32>(device, a, b, c)?;
            }
        }
        Ok(())
    }

    fn run_one<T: Real>(
        &self,
        device: &mut Emulator,
        a: Matrix,
        b: Matrix,
        c: Matrix,
    ) -> Result<(), EmulatorError> {
        let &Self { m, n, k, .. } = self;
        // Row i of op(A), and column j of op(B), side by side: their product is a dot; rows of B make it a vector loop.
        let a = a.rows::<T>(device, m, k)?;
        let b = b.rows::<T>(device, k, n)?;
        let old = if self.beta == 0.0 { None } else { Some(c.rows::<T>(device, m, n)?) };
        let (alpha, beta) = (T::from_f64(self.alpha), T::from_f64(self.beta));
        let mut result = vec![T::default(); m * n];
        for (row, sums) in result.chunks_exact_mut(n.max(1)).enumerate() {
            for (step, factor) in a[row * k..(row + 1) * k].iter().enumerate() {
                for (sum, other) in sums.iter_mut().zip(&b[step * n..(step + 1) * n]) {
                    *sum = *sum + *factor * *other;
                }
            }
        }
        for (at, value) in result.iter_mut().enumerate() {
            *value = alpha * *value;
            if let Some(old) = &old {
                *value = *value + beta * old[at];
            }
        }
        c.store(device, &result, m, n)
    }
}

impl Matrix {
    fn of_batch(self, index: usize) -> Self {
        let step = self.batch_stride * index as i64 * self.element.size() as i64;
        Self { address: self.address.wrapping_add_signed(step), ..self }
    }

    /// op(matrix) by rows.
    fn rows<T: Real>(
        &self,
        device: &mut Emulator,
        rows: usize,
        columns: usize,
    ) -> Result<Vec<T>, EmulatorError> {
        let (height, width) = if self.transposed { (columns, rows) } else { (rows, columns) };
        let size = self.element.size();
        let mut values = vec![T::default(); rows * columns];
        for outer in 0..width {
            let address = self.address + (outer * self.stride * size) as u64;
            let bytes = device.read_input("a matrix product's input", address, height * size)?;
            for (inner, number) in bytes.chunks_exact(size).enumerate() {
                let at = if self.transposed { outer * columns + inner } else { inner * columns + outer };
                values[at] = T::from_f64(self.element.read(number));
            }
        }
        Ok(values)
    }

    fn store<T: Real>(
        &self,
        device: &mut Emulator,
        values: &[T],
        rows: usize,
        columns: usize,
    ) -> Result<(), EmulatorError> {
        let size = self.element.size();
        for column in 0..columns {
            let address = self.address + (column * self.stride * size) as u64;
            let mut bytes = Vec::with_capacity(rows * size);
            for row in 0..rows {
                self.element.write(values[row * columns + column].to_f64(), &mut bytes);
            }
            device.memory().write(address, &bytes)?;
        }
        Ok(())
    }
}

impl MatrixType {
    fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    fn read(self, bytes: &[u8]) -> f64 {
        let half = || u16::from_le_bytes([bytes[0], bytes[1]]);
        match self {
            Self::F16 => f64::from(f16::from_bits(half()).widen()),
            Self::Bf16 => f64::from(bf16::from_bits(half()).widen()),
            Self::F32 => f64::from(bytemuck::pod_read_unaligned::<f32>(bytes)),
            Self::F64 => bytemuck::pod_read_unaligned(bytes),
        }
    }

    fn write(self, value: f64, bytes: &mut Vec<u8>) {
        match self {
            Self::F16 => bytes.extend(f16::narrow(value).to_bits().to_le_bytes()),
            Self::Bf16 => bytes.extend(bf16_from_f32(value as f32).to_bits().to_le_bytes()),
            Self::F32 => bytes.extend((value as f32).to_le_bytes()),
            Self::F64 => bytes.extend(value.to_le_bytes()),
        }
    }
}

/// The type that sums are taken in.
trait Real: Copy + Default + Add<Output = Self> + Mul<Output = Self> {
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
}

impl Real for f32 {
    fn from_f64(value: f64) -> Self {
        value as Self
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    fn from_f64(value: f64) -> Self {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{DevicePointer, Options};

    fn matrix(pointer: DevicePointer, element: MatrixType, stride: usize, transposed: bool) -> Matrix {
        Matrix { address: pointer.0, element, stride, batch_stride: 0, transposed }
    }

    /// Column-major by hand: A = [1 2; 3 4; 5 6] given transposed, B = [1 0; 2 1].
    #[test]
    fn a_product_with_a_transpose_and_an_old_result() {
        let mut device = Emulator::new(Options::default());
        let a = device.upload(&[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let b = device.upload(&[1.0_f32, 2.0, 0.0, 1.0].map(bf16::from_f32)).unwrap();
        let c = device.upload(&[10.0_f32; 8]).unwrap();
        let product = Product {
            a: matrix(a, MatrixType::F32, 2, true),
            b: matrix(b, MatrixType::Bf16, 2, false),
            c: matrix(c, MatrixType::F32, 4, false),
            m: 3,
            n: 2,
            k: 2,
            alpha: 2.0,
            beta: 1.0,
            batch: 1,
        };
        product.run(&mut device).unwrap();
        let result = device.download::<f32>(c, 8).unwrap();
        assert_eq!(result, [20.0, 32.0, 44.0, 10.0, 14.0, 18.0, 22.0, 10.0]);
    }

    #[test]
    fn an_input_outside_its_allocation_is_named() {
        let mut device = Emulator::new(Options::default());
        let a = device.upload(&[1.0_f32; 4]).unwrap();
        let product = Product {
            a: matrix(a, MatrixType::F32, 3, false),
            b: matrix(a, MatrixType::F32, 2, false),
            c: matrix(a, MatrixType::F32, 2, false),
            m: 2,
            n: 2,
            k: 2,
            alpha: 1.0,
            beta: 0.0,
            batch: 1,
        };
        let message = product.run(&mut device).unwrap_err().to_string();
        assert!(message.contains("a matrix product's input of 8 bytes"), "{message}");
    }
}
