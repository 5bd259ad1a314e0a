use std::time::Duration;

use super::*;
use crate::reference::Reference;

fn place(image: &str) -> Place {
    image.parse::<Reference>().unwrap().place().clone()
}

fn write(root: &Path, name: &str, text: &str) {
    std::fs::create_dir_all(root.join(name)).unwrap();
    std::fs::write(root.join(name).join("hosts.toml"), text).unwrap();
}

fn urls(root: &Path, image: &str) -> Vec<String> {
    let hosts = HostsDirectories::new([root.to_owned()]).hosts(&place(image)).unwrap();
    hosts
        .iter()
        .map(|host| format!("{}{}", host.url, if host.mirror { " mirror" } else { "" }))
        .collect()
}

#[test]
fn nothing_configured() {
    let none = Path::new("/nonexistent");
    assert_eq!(urls(none, "busybox"), ["https://registry-1.docker.io/v2"]);
    assert_eq!(urls(none, "reg.example:5000/a"), ["https://reg.example:5000/v2"]);
    assert_eq!(urls(none, "[::1]:5000/a"), ["https://[::1]:5000/v2"]);
    for (image, plain) in [
        ("localhost:5000/a", true),
        ("127.0.0.1/a", true),
        ("[::1]/a", true),
        ("reg.example/a", false),
        ("127.0.0.1.evil.example/a", false),
    ] {
        assert_eq!(RegistryHost::of(&place(image)).unwrap().allows_http, plain, "{image}");
    }
    let mut host = RegistryHost::of(&place("localhost/a")).unwrap();
    host.use_http();
    assert_eq!(host.url.as_str(), "http://localhost:443/v2");
}

#[test]
fn hosts_come_in_the_order_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        "reg.example",
        r#"
        server = "https://reg.example"
        ca = "own.pem"
        [host."https://zz.example"]
          capabilities = ["pull"]
          skip_verify = true
          client = [["c.pem", "k.pem"]]
        [host."http://aa.example:8080/proxy"]
          ca = ["/abs/ca.pem", "rel.pem"]
          dial_timeout = "2s"
          [host."http://aa.example:8080/proxy".header]
            X-One = "1"
            X-Two = ["2", "3"]
        [host."https://mm.example/base"]
          override_path = true
    "#,
    );
    assert_eq!(
        urls(dir.path(), "reg.example/a"),
        [
            "https://zz.example/v2 mirror",
            "http://aa.example:8080/proxy/v2 mirror",
            "https://mm.example/base mirror",
            "https://reg.example/v2",
        ]
    );
    let hosts =
        HostsDirectories::new([dir.path().to_owned()]).hosts(&place("reg.example/a")).unwrap();
    let here = |name: &str| dir.path().join("reg.example").join(name);
    assert!(!hosts[0].resolves && hosts[1].resolves);
    assert!(hosts[0].tls.skip_verify && !hosts[1].tls.skip_verify);
    assert_eq!(hosts[0].tls.client, Some((here("c.pem"), Some(here("k.pem")))));
    assert_eq!(hosts[1].tls.ca, [PathBuf::from("/abs/ca.pem"), here("rel.pem")]);
    assert_eq!(hosts[1].dial_timeout, Duration::from_secs(2));
    assert_eq!(hosts[1].headers.get_all("x-two").iter().count(), 2);
    assert!(!format!("{:?}", hosts[1]).contains("\"2\""), "header values are in the Debug output");
    assert_eq!(hosts[3].tls.ca, [here("own.pem")]);
}

#[test]
fn folders_are_found_as_containerd_finds_them() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "_default", "[host.\"https://default.example\"]\n");
    assert_eq!(
        urls(dir.path(), "reg.example:5000/a"),
        ["https://default.example/v2 mirror", "https://reg.example:5000/v2"]
    );
    write(dir.path(), "reg.example:5000", "server = \"http://reg.example:5000\"\n");
    assert_eq!(urls(dir.path(), "reg.example:5000/a"), ["http://reg.example:5000/v2"]);
    write(dir.path(), "reg.example_5000_", "[host.\"https://first.example\"]\n");
    assert_eq!(urls(dir.path(), "reg.example:5000/a")[0], "https://first.example/v2 mirror");
    write(dir.path(), "docker.io", "server = \"https://registry-1.docker.io\"\n");
    assert_eq!(urls(dir.path(), "busybox"), ["https://registry-1.docker.io/v2"]);
    let docker = dir.path().join("old.example");
    std::fs::create_dir_all(&docker).unwrap();
    for name in ["ca.crt", "me.cert", "me.key"] {
        std::fs::write(docker.join(name), "").unwrap();
    }
    let hosts =
        HostsDirectories::new([dir.path().to_owned()]).hosts(&place("old.example/a")).unwrap();
    assert_eq!(hosts[0].tls.ca, [docker.join("ca.crt")]);
    assert_eq!(hosts[0].tls.client, Some((docker.join("me.cert"), Some(docker.join("me.key")))));
}

#[test]
fn errors_name_the_file_and_key_but_no_value() {
    for (text, part) in [
        ("x = 1\n", "line 1: unknown field `x`"),
        ("\n[host.\"https://a\"]\nheader = \"Bearer hunter2\"\n", "line 3"),
        (
            "[host.\"https://a\".header]\nAuthorization = \"hunter2\\u007f\"\n",
            "header \"Authorization\"",
        ),
        ("[host.\"https://u:hunter2@a\"]\n", "without a user"),
        ("server = \"ftp://a\"\n", "it must be [http[s]://]HOST"),
        ("dial_timeout = \"5\"\n", "dial_timeout \"5\""),
        ("client = [\"a\", \"b\"]\n", "only one certificate is supported"),
        ("client = [[\"a\", \"b\", \"c\"]]\n", "a pair is"),
        ("server = \n", "line 1"),
    ] {
        let error =
            file::parse(Path::new("/h/hosts.toml"), text, &place("reg.example/a")).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(shown.starts_with("/h/hosts.toml: ") && shown.contains(part), "{text}: {shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
