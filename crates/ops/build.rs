//! Compiles the kernels in `kernels/` to PTX, where the feature `cuda` is on.
//!
//! nvcc is $NVCC, else that of $CUDA_HOME, else the one on PATH. Where `TESSERA_KERNELS` names a folder that `scripts/kernels`
//! has filled, its PTX is taken instead: the very text whose registers and spills were checked.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;
use std::{env, fs, thread};

const FLAGS: [&str; 4] = ["-std=c++20", "-O3", "--ptx", "--gpu-architecture=compute_80"];

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let folder = PathBuf::from(env::var("OUT_DIR")?);
    for variable in ["NVCC", "CUDA_HOME", "TESSERA_KERNELS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    let table = if env::var_os("CARGO_FEATURE_CUDA").is_some() { compile_all(&folder)? } else { Vec::new() };
    let rows: String =
        table.iter().map(|(name, ptx)| format!("({name:?}, include_str!({:?})),\n", ptx.display())).collect();
    fs::write(folder.join("kernels.rs"), format!("&[{rows}]"))?;
    Ok(())
}

/// Every kernel file's name and PTX.
fn compile_all(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../../kernels");
    println!("cargo::rerun-if-changed={}", root.display());
    let (mut sources, mut headers) = (Vec::new(), Vec::new());
    list(&root, &mut |path| match path.extension().and_then(|extension| extension.to_str()) {
        Some("cu") => sources.push(path),
        Some("cuh") => headers.push(path),
        _ => {}
    })?;
    sources.sort();
    let mut table = Vec::new();
    for source in &sources {
        let name = source.strip_prefix(&root)?.with_extension("").display().to_string().replace('/', "_");
        table.push((name, source.clone()));
    }
    if let Some(compiled) = env::var_os("TESSERA_KERNELS") {
        let compiled = fs::canonicalize(compiled)?;
        println!("cargo::rerun-if-changed={}", compiled.display());
        return Ok(table
            .into_iter()
            .map(|(name, _)| (name.clone(), compiled.join(name).with_extension("ptx")))
            .collect());
    }
    let newest = headers.iter().map(|path| modified(path)).collect::<Result<Vec<_>>>()?.into_iter().max();
    let nvcc = nvcc();
    forget_other_compilers(folder, &nvcc)?;
    // nvcc is one thread; a few at a time are as many as have memory everywhere.
    let mut compiled = Vec::new();
    for some in table.chunks(4) {
        let done: Vec<_> = thread::scope(|scope| {
            let start = |(name, source): &(String, PathBuf)| {
                let (nvcc, source, ptx) = (&nvcc, source.clone(), folder.join(name).with_extension("ptx"));
                scope.spawn(move || compile(nvcc, &source, ptx, newest))
            };
            let running: Vec<_> = some.iter().map(start).collect();
            running.into_iter().map(|thread| thread.join()).collect()
        });
        for ((name, _), ptx) in some.iter().zip(done) {
            compiled.push((name.clone(), ptx.map_err(|_| "a thread that ran nvcc panicked")??));
        }
    }
    Ok(compiled)
}

/// Removes what another nvcc has compiled, or this one with other flags.
fn forget_other_compilers(folder: &Path, nvcc: &Path) -> Result<()> {
    let version = Command::new(nvcc).arg("--version").output().map(|ran| ran.stdout).unwrap_or_default();
    let own = [version, FLAGS.concat().into_bytes()].concat();
    let compiler = folder.join("compiler");
    if fs::read(&compiler).is_ok_and(|before| before == own) {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "ptx") {
            fs::remove_file(path)?;
        }
    }
    Ok(fs::write(compiler, own)?)
}

/// Compiles one file, unless its PTX is newer than it and the headers.
fn compile(nvcc: &Path, source: &Path, ptx: PathBuf, newest: Option<SystemTime>) -> Result<PathBuf> {
    let is_current = match modified(&ptx) {
        Ok(compiled) => compiled > modified(source)? && newest.is_none_or(|header| compiled > header),
        Err(_) => false,
    };
    if is_current {
        return Ok(ptx);
    }
    let unfinished = ptx.with_extension("unfinished");
    let command = || {
        let mut command = Command::new(nvcc);
        command.args(FLAGS).arg("-o").arg(&unfinished).arg(source);
        command
    };
    let ran = command().output().map_err(|error| {
        format!(
            "the feature `cuda` needs nvcc, and {} did not start: {error}. Install the CUDA toolkit, or: \
             export CUDA_HOME=$(scripts/cuda-toolkit)",
            nvcc.display()
        )
    })?;
    if !ran.status.success() {
        return Err(format!("{:?}: {}", command(), String::from_utf8_lossy(&ran.stderr)).into());
    }
    fs::rename(unfinished, &ptx)?;
    Ok(ptx)
}

fn nvcc() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    let at_home = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    at_home.filter(|nvcc| nvcc.exists()).unwrap_or_else(|| "nvcc".into())
}

fn modified(path: &Path) -> Result<SystemTime> {
    Ok(fs::metadata(path)?.modified()?)
}

/// Calls `found` with every file below a folder.
fn list(folder: &Path, found: &mut impl FnMut(PathBuf)) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { list(&path, found)? } else { found(path) }
    }
    Ok(())
}
