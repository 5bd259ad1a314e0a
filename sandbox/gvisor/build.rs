//! Tells the tests whether there is a runsc to run them on.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(has_runsc)");
    println!("cargo::rerun-if-env-changed=BULKHEAD_RUNSC");
    if std::env::var_os("BULKHEAD_RUNSC").is_some() {
        println!("cargo::rustc-cfg=has_runsc");
    }
}
