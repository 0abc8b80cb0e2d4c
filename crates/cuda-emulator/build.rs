//! Generates a function for each symbol of the libraries that `src/abi` does not define: it says its name, and gives
//! the library's code for "not supported".

use std::collections::BTreeSet;
use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=symbols.txt");
    println!("cargo::rerun-if-changed=src/abi");
    let mut defined = BTreeSet::new();
    for entry in fs::read_dir("src/abi")? {
        let text = fs::read_to_string(entry?.path())?;
        let after = text.split("extern \"C\" fn ").skip(1);
        defined.extend(after.filter_map(|rest| rest.split_once('(')).map(|(name, _)| name.to_owned()));
    }
    let mut generated = String::new();
    for line in fs::read_to_string("symbols.txt")?.lines() {
        let Some((library, name)) = line.split_once(' ') else { continue };
        if !defined.contains(name) {
            generated.push_str(&function(library, name));
        }
    }
    let folder = env::var("OUT_DIR").map_err(io::Error::other)?;
    fs::write(Path::new(&folder).join("absent.rs"), generated)
}

fn function(library: &str, name: &str) -> String {
    // Functions that return a text return none.
    let returns_text = ["ErrorString", "LastError", "StatusName", "StatusString"];
    let code = match library {
        _ if returns_text.iter().any(|part| name.contains(part)) => 0,
        "cuda" => 801,
        "cublas" | "cublasLt" => 15,
        "curand" => 204,
        "nvrtc" => 5,
        _ => 3,
    };
    format!(
        "#[unsafe(no_mangle)] pub extern \"C\" fn {name}() -> usize \
         {{ super::world::report_absent(\"{name}\"); {code} }}\n"
    )
}
