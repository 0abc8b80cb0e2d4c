//! Faults planted in copies of kernels: the tests of the kernels must fail on each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::device::with_kernels;
use crate::{attention, experts, products, trials};

/// The kernels' sources.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels")
}

/// Copies the sources to `folder` with `right` replaced by `wrong` in one of them.
fn copy_with_fault(folder: &Path, source: &str, right: &str, wrong: &str) {
    let mut planted = 0;
    for part in ["", "common", "attention", "experts"] {
        std::fs::create_dir_all(folder.join(part)).unwrap();
        for entry in std::fs::read_dir(sources().join(part)).unwrap() {
            let (from, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
            if from.is_dir() {
                continue;
            }
            let to = Path::new(part).join(name);
            let mut text = std::fs::read_to_string(&from).unwrap();
            if to == Path::new(source) {
                planted = text.matches(right).count();
                text = text.replace(right, wrong);
            }
            std::fs::write(folder.join(to), text).unwrap();
        }
    }
    assert_eq!(planted, 1, "{source} has '{right}' so often");
}

fn compile(source: &Path) -> String {
    let toolkit = std::env::var("CUDA_HOME").expect("CUDA_HOME names the toolkit: run scripts/test-cuda");
    let ptx = source.with_extension("ptx");
    let status = Command::new(Path::new(&toolkit).join("bin/nvcc"))
        .args(["-std=c++20", "-O3", "--ptx", "--gpu-architecture=compute_80", "-o"])
        .args([&ptx, source])
        .status()
        .unwrap();
    assert!(status.success(), "nvcc on {}: {status}", source.display());
    std::fs::read_to_string(ptx).unwrap()
}

/// Plants a fault in `source`, which is that of `kernel` or included there, and expects `test` to panic with a message
/// that has `expected` in it.
fn must_fail(kernel: &str, source: &str, (right, wrong): (&str, &str), test: fn(), expected: &str) {
    let file = kernel.replace('/', "_");
    let name = format!("tessera-fault-{}-{file}-{}", std::process::id(), right.len());
    let folder = std::env::temp_dir().join(name);
    copy_with_fault(&folder, source, right, wrong);
    let ptx = compile(&folder.join(format!("{kernel}.cu")));
    std::fs::remove_dir_all(&folder).unwrap();
    let panic = with_kernels(&file, &ptx, || catch_unwind(AssertUnwindSafe(test)));
    let Err(panic) = panic else { panic!("nothing noticed '{wrong}' for '{right}' in {source}") };
    let message = panic.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(message.contains(expected), "expected '{expected}' in: {message}");
}

#[test]
fn a_missing_barrier_is_seen() {
    let barrier = (
        "    __syncthreads();\n    const uint32_t own = first_column",
        "    const uint32_t own = first_column",
    );
    must_fail("bias", "bias.cu", barrier, trials::columns_are_summed, "race in shared memory");
    let barrier = ("        next += all;\n        __syncthreads();\n", "        next += all;\n");
    must_fail(
        "experts/sort",
        "experts/sort.cu",
        barrier,
        experts::sorting_is_the_cpus,
        "race in shared memory",
    );
}

#[test]
fn a_barrier_between_rounds_is_needed() {
    let barrier = (
        "        wait_copies<0>();\n        __syncthreads();\n        if (depth + DEPTH < inner)",
        "        wait_copies<0>();\n        if (depth + DEPTH < inner)",
    );
    let test = products::products_on_tensor_cores_follow_the_cpu;
    must_fail("experts/linear", "experts/linear.cu", barrier, test, "race in shared memory");
}

#[test]
fn a_missing_wait_for_a_copy_is_seen() {
    let wait = (
        "        softmax.soften(scores, outputs);\n        wait_copies<0>();\n",
        "        softmax.soften(scores, outputs);\n",
    );
    let test = attention::tensor_core_attention_follows_the_cpu;
    must_fail("attention/forward", "attention/forward.cu", wait, test, "asynchronous copy in flight");
}

#[test]
fn a_length_that_is_off_by_one_is_seen() {
    let length =
        ("column < width; column += blockDim.x * N) body", "column <= width; column += blockDim.x * N) body");
    must_fail("rows", "common/rows.cuh", length, trials::rows_are_picked, "");
    let causal = ("const bool seen = at <= query", "const bool seen = at < query");
    let test = attention::tensor_core_attention_follows_the_cpu;
    must_fail("attention/forward", "attention/forward.cu", causal, test, "");
}

#[test]
fn a_swapped_stride_is_seen() {
    let stride =
        ("static_cast<uint64_t>(depth) * outputs + column", "static_cast<uint64_t>(depth) * inputs + column");
    let test = products::products_on_tensor_cores_follow_the_cpu;
    must_fail("experts/linear", "experts/linear.cu", stride, test, "");
    let stride = ("row + index / packs * 2 * half + column", "row + index / packs * half + column");
    must_fail("rope", "rope.cu", stride, trials::heads_are_turned, "");
}

#[test]
fn a_forgotten_window_is_seen() {
    let window = ("return window == 0 || end - row < window ? end : row + window;", "return end;");
    let test = attention::tensor_core_attention_follows_the_cpu;
    must_fail("attention/backward", "attention/attention.cuh", window, test, "dk");
}
