//! Compiles the kernels in `kernels/`, where the feature `cuda` is on: each file to a fat binary of machine code for several
//! GPUs, which any driver of the toolkit's major version loads, and of PTX, which newer GPUs and the emulator compile.
//!
//! nvcc is $NVCC, else that of $CUDA_HOME, else the one on PATH. Where `TESSERA_KERNELS` names a folder that `scripts/kernels`
//! has filled, its fat binaries are taken instead: the very code whose registers and spills were checked.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;
use std::{env, fs, thread};

const FLAGS: [&str; 4] = ["-std=c++20", "-O3", "--fatbin", "--no-compress"];

/// What machine code is made for, where nvcc knows it: A100 and its kin, H100 and H200, B200.
const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90", "sm_100"];

/// How the names of files begin that use what H100 and H200 alone have.
const HOPPER: &str = "hopper_";
const HOPPER_TARGET: &str = "-gencode=arch=compute_90a,code=[compute_90a,sm_90a]";

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let folder = PathBuf::from(env::var("OUT_DIR")?);
    for variable in ["NVCC", "CUDA_HOME", "TESSERA_KERNELS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    let table = if env::var_os("CARGO_FEATURE_CUDA").is_some() { compile_all(&folder)? } else { Vec::new() };
    let rows: String = table
        .iter()
        .map(|(name, code)| format!("({name:?}, include_bytes!({:?})),\n", code.display()))
        .collect();
    fs::write(folder.join("kernels.rs"), format!("&[{rows}]"))?;
    Ok(())
}

/// Every kernel file's name and fat binary.
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
            .map(|(name, _)| (name.clone(), compiled.join(name).with_extension("fatbin")))
            .collect());
    }
    let newest = headers.iter().map(|path| modified(path)).collect::<Result<Vec<_>>>()?.into_iter().max();
    let nvcc = nvcc();
    let target = target(&nvcc);
    forget_other_compilers(folder, &nvcc, &target)?;
    let compiler = Compiler { nvcc: &nvcc, target: &target, newest };
    // nvcc is one thread; a few at a time are as many as have memory everywhere.
    let mut compiled = Vec::new();
    for some in table.chunks(4) {
        let done: Vec<_> = thread::scope(|scope| {
            let start = |(name, source): &(String, PathBuf)| {
                let (compiler, source) = (&compiler, source.clone());
                let code = folder.join(name).with_extension("fatbin");
                scope.spawn(move || compiler.compile(&source, code))
            };
            let running: Vec<_> = some.iter().map(start).collect();
            running.into_iter().map(|thread| thread.join()).collect()
        });
        for ((name, _), code) in some.iter().zip(done) {
            compiled.push((name.clone(), code.map_err(|_| "a thread that ran nvcc panicked")??));
        }
    }
    Ok(compiled)
}

/// What to compile for: PTX and the machine code that this nvcc can make of it. Where nvcc does not start, `compile` tells so.
fn target(nvcc: &Path) -> String {
    let listed = Command::new(nvcc).arg("--list-gpu-code").output().map(|ran| ran.stdout).unwrap_or_default();
    let listed = String::from_utf8_lossy(&listed);
    let known = ARCHITECTURES.into_iter().filter(|&name| listed.lines().any(|line| line == name));
    let codes: Vec<_> = ["compute_80"].into_iter().chain(known).collect();
    format!("-gencode=arch=compute_80,code=[{}]", codes.join(","))
}

/// Removes what another nvcc has compiled, or this one with other flags.
fn forget_other_compilers(folder: &Path, nvcc: &Path, target: &str) -> Result<()> {
    let version = Command::new(nvcc).arg("--version").output().map(|ran| ran.stdout).unwrap_or_default();
    let own = [&version, FLAGS.concat().as_bytes(), target.as_bytes(), HOPPER_TARGET.as_bytes()].concat();
    let compiler = folder.join("compiler");
    if fs::read(&compiler).is_ok_and(|before| before == own) {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "fatbin") {
            fs::remove_file(path)?;
        }
    }
    Ok(fs::write(compiler, own)?)
}

struct Compiler<'a> {
    nvcc: &'a Path,
    target: &'a str,
    /// When the newest header was changed.
    newest: Option<SystemTime>,
}

impl Compiler<'_> {
    /// Compiles one file, unless its code is newer than it and the headers.
    fn compile(&self, source: &Path, code: PathBuf) -> Result<PathBuf> {
        let is_current = match modified(&code) {
            Ok(compiled) => {
                compiled > modified(source)? && self.newest.is_none_or(|header| compiled > header)
            }
            Err(_) => false,
        };
        if is_current {
            return Ok(code);
        }
        let unfinished = code.with_extension("unfinished");
        let for_hopper = code.file_name().is_some_and(|name| name.to_string_lossy().starts_with(HOPPER));
        let target = if for_hopper { HOPPER_TARGET } else { self.target };
        let mut command = Command::new(self.nvcc);
        command.args(FLAGS).arg(target).arg("-o").arg(&unfinished).arg(source);
        let ran = command.output().map_err(|error| {
            format!(
                "the feature `cuda` needs nvcc, and {} did not start: {error}. Install the CUDA toolkit, or: \
                 export CUDA_HOME=$(scripts/cuda-toolkit)",
                self.nvcc.display()
            )
        })?;
        if !ran.status.success() {
            return Err(format!("{command:?}: {}", String::from_utf8_lossy(&ran.stderr)).into());
        }
        // ptxas tells here of spills, and of products that it could not let overlap.
        for line in String::from_utf8_lossy(&ran.stderr).lines().filter(|line| !line.trim().is_empty()) {
            println!("cargo::warning=nvcc: {line}");
        }
        fs::rename(unfinished, &code)?;
        Ok(code)
    }
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
