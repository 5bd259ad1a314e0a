//! Generates the messages and the service from `proto/agent.proto`, without protoc.

use std::path::PathBuf;

use ttrpc_codegen::{Codegen, Customize};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    println!("cargo:rerun-if-changed=proto/agent.proto");
    Codegen::new()
        .input("proto/agent.proto")
        .include("proto")
        .out_dir(&out)
        .rust_protobuf()
        .customize(Customize { async_all: true, ..Customize::default() })
        .run()?;
    // The generated files start with inner attributes, which an included file must not have.
    for name in ["agent.rs", "agent_ttrpc.rs"] {
        let path = out.join(name);
        let text = std::fs::read_to_string(&path)?;
        let kept: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with("#![") && !line.starts_with("//!"))
            .collect();
        std::fs::write(&path, kept.join("\n"))?;
    }
    Ok(())
}
