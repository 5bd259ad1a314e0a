//! Tells the tests whether there is a registry to run them against.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(has_registry)");
    // cargo-fuzz sets this one.
    println!("cargo::rustc-check-cfg=cfg(fuzzing)");
    println!("cargo::rerun-if-env-changed=BULKHEAD_REGISTRY");
    if std::env::var_os("BULKHEAD_REGISTRY").is_some() {
        println!("cargo::rustc-cfg=has_registry");
    }
}
