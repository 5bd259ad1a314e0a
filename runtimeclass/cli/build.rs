//! Tells the tests whether there is a skopeo to read what `bulkhead pull` writes.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(has_skopeo)");
    println!("cargo::rerun-if-env-changed=BULKHEAD_SKOPEO");
    if std::env::var_os("BULKHEAD_SKOPEO").is_some() {
        println!("cargo::rustc-cfg=has_skopeo");
    }
}
