//! The Pod network of one containerd: a bridge of its own, addresses from a /24 that no route of
//! the machine touches.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use super::place::Place;
use super::process::Run;

/// Writes the CNI configuration for the containerd called `suffix` into `dir`.
pub(crate) fn write(place: &Place, suffix: &str, dir: &Path) -> Result<()> {
    let subnet = free_subnet(place)?;
    fs::create_dir_all(dir)?;
    let conf = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": place.network(suffix),
        "plugins": [
            {
                "type": "bridge",
                "bridge": place.bridge(suffix),
                "isGateway": true,
                "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": dir.join("ipam"),
                    "ranges": [[{ "subnet": subnet }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    let conf_dir = dir.join("net.d");
    fs::create_dir_all(&conf_dir)?;
    fs::write(conf_dir.join("10-bed.conflist"), serde_json::to_vec_pretty(&conf)?)?;
    Ok(())
}

/// A /24 below 10.64.0.0/10 that is in no routing table.
fn free_subnet(place: &Place) -> Result<String> {
    let routes = Run::new("ip").args(["-4", "route", "show", "table", "all"]).ok()?;
    let seed = place.id().bytes().fold(7_u32, |sum, b| sum.wrapping_mul(31).wrapping_add(b.into()));
    for step in 0..256_u32 {
        let pick = seed.wrapping_add(step.wrapping_mul(97)) % (64 * 256);
        let net = format!("10.{}.{}", 64 + pick / 256, pick % 256);
        if !routes.contains(&format!("{net}.")) {
            return Ok(format!("{net}.0/24"));
        }
    }
    bail!("no free /24 below 10.64.0.0/10 in 256 tries: see ip route show table all")
}
