use super::*;

const SHA: &str = "sha256:6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b";

#[test]
fn omitted_parts_are_filled_in() {
    let sha = format!("@{SHA}");
    for (text, whole) in [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1", "docker.io/library/busybox:1"),
        ("library/busybox", "docker.io/library/busybox:latest"),
        ("team/app:v1.2_3-x", "docker.io/team/app:v1.2_3-x"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/team/app", "docker.io/team/app:latest"),
        ("registry-1.docker.io/team/app", "docker.io/team/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("reg.example/app", "reg.example/app:latest"),
        ("REG.Example:5000/a/b/c:T", "reg.example:5000/a/b/c:T"),
        ("reg/app", "docker.io/reg/app:latest"),
        ("10.0.0.1/app", "10.0.0.1/app:latest"),
        ("[::1]/app", "[::1]/app:latest"),
        ("[0:0::1]:5000/app:2", "[::1]:5000/app:2"),
        ("[2001:DB8::7]:443/a/b", "[2001:db8::7]:443/a/b:latest"),
        ("a--b/c__d.e_f:x", "docker.io/a--b/c__d.e_f:x"),
    ] {
        let reference: Reference = text.parse().unwrap();
        assert_eq!(reference.to_string(), whole, "{text}");
        assert_eq!(whole.parse::<Reference>().unwrap(), reference, "{text}");
        let digested: Reference = format!("{text}{sha}").parse().unwrap();
        assert_eq!(digested.selector(), SHA, "{text}");
        assert_eq!(digested.place(), reference.place(), "{text}");
    }
    let bare: Reference = format!("busybox@{SHA}").parse().unwrap();
    assert_eq!(bare.tag(), None);
    assert_eq!(bare.to_string(), format!("docker.io/library/busybox@{SHA}"));
    assert_eq!("a:b".parse::<Reference>().unwrap().selector(), "b");
}

#[test]
fn invalid_references() {
    let long_name = format!("a/{}", "b".repeat(254));
    let long_when_filled_in = "b".repeat(250);
    let long_tag = format!("a:{}", "b".repeat(129));
    let id = SHA.strip_prefix("sha256:").unwrap();
    for text in [
        "",
        "Busybox",
        "Reg/app",
        "a//b",
        "/a",
        "a/",
        "a:",
        "a:-b",
        "a: b",
        "a@",
        "a@sha256:12",
        "a@md5:6c3c624b58dbbcd3c0dd82b4c53f0419",
        "a..b",
        "a___b",
        "-a",
        "a-",
        "a/../b",
        "reg.example:0/a",
        "reg.example:70000/a",
        "reg.example:x/a",
        "reg..example/a",
        "-reg.example/a",
        "::1/a",
        "[::1/a",
        "[::1]x/a",
        "[127.0.0.1]/a",
        "user:pw@reg.example/a",
        "https://reg.example/a",
        "reg.example/a?b",
        "reg.example/a#b",
        "a\nb",
        "ä/b",
        &long_name,
        &long_when_filled_in,
        &long_tag,
        id,
    ] {
        let error = text.parse::<Reference>().unwrap_err();
        assert!(error.to_string().starts_with("image reference \""), "{error}");
        assert_eq!(error.kind(), Kind::InvalidArgument);
    }
    assert!(format!("{id}:x").parse::<Reference>().is_err());
    assert!(format!("reg.example/{id}").parse::<Reference>().is_ok());
}

#[test]
fn servers_of_places() {
    let place = |text: &str| text.parse::<Reference>().unwrap().place().clone();
    assert_eq!(place("busybox").server(), "registry-1.docker.io");
    assert_eq!(place("reg.example:5000/a").server(), "reg.example:5000");
    assert_eq!(Place::new("Reg.example", "a/b").unwrap().to_string(), "reg.example/a/b");
    assert!(Place::new("reg.example", "../b").is_err());
    assert!(Place::new("reg", "b").is_err());
}
