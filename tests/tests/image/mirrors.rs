//! How a registry is reached: `hosts.toml` with mirrors and certificates, and proxies.

use std::fs;

use berth_tests::{DockerRegistry, FakeRegistry, Image, Layer, Machine};
use tonic::Code;

use crate::ready;

#[tokio::test]
async fn a_machine_without_certificate_authorities_can_still_pull_where_it_is_told_whom_to_trust() {
    let machine = Machine::new();
    assert!(
        machine
            .command("mount")
            .args(["-t", "tmpfs", "none", "/etc/ssl"])
            .status()
            .unwrap()
            .success()
    );
    let daemon = machine.start().await;
    let cri = daemon.cri();
    cri.pull_image(&machine, Image::busybox()).await;
    let (registry, certificate) = DockerRegistry::start_tls(&machine).await;
    let name = registry.push_tls(
        &machine,
        "other",
        "1",
        &Image::simple(Layer::new().file("x", b"x"), &["x"]),
    );
    let directory = machine.path("certs.d").join(&registry.host);
    fs::create_dir_all(&directory).unwrap();
    let server = format!("server = \"https://{}\"\n", registry.host);
    fs::write(directory.join("hosts.toml"), &server).unwrap();
    let refused = cri.pull(&name).await.unwrap_err();
    assert!(refused.message().contains("ca-certificates"), "{refused}");
    fs::write(directory.join("hosts.toml"), format!("{server}ca = {certificate:?}\n")).unwrap();
    cri.pull(&name).await.unwrap();
}

#[tokio::test]
async fn https_needs_a_certificate_that_is_trusted() {
    let (machine, _daemon, cri) = ready().await;
    let (registry, certificate) = DockerRegistry::start_tls(&machine).await;
    let name = registry.push_tls(&machine, "busybox", "1", &Image::busybox());
    let directory = machine.path("certs.d").join(&registry.host);
    fs::create_dir_all(&directory).unwrap();
    let server = format!("server = \"https://{}\"\n", registry.host);
    for (trust, pulls) in
        [("", false), ("skip_verify = true\n", true), (&format!("ca = {certificate:?}\n"), true)]
    {
        fs::write(directory.join("hosts.toml"), format!("{server}{trust}")).unwrap();
        let pulled = cri.pull(&name).await;
        assert_eq!(pulled.is_ok(), pulls, "{trust}: {pulled:?}");
        if let Err(error) = pulled {
            assert!(
                error.code() == Code::Unknown && error.message().contains("certificate"),
                "{error}"
            );
        }
        cri.remove_image(&name).await.unwrap();
    }
}

#[tokio::test]
async fn mirrors_are_asked_first_and_the_next_when_one_is_down() {
    let (machine, _daemon, cri) = ready().await;
    let mirror = FakeRegistry::start(&machine, Image::busybox(), |_| None);
    let text = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://127.0.0.1:2\"]\n[host.\"http://{}\"]\n",
        mirror.host
    );
    for directory in ["_default", "registry.example"] {
        fs::create_dir_all(machine.path("certs.d").join(directory)).unwrap();
        fs::write(machine.path("certs.d").join(directory).join("hosts.toml"), &text).unwrap();
    }
    for name in ["registry.example/a/b:1", "docker.io/library/c:2", "d:3"] {
        cri.pull(name).await.unwrap();
        assert!(cri.image_status(name).await.unwrap().is_some());
    }
    let asked: Vec<String> = mirror
        .requests()
        .into_iter()
        .map(|request| request.path)
        .filter(|path| path.contains("/manifests/"))
        .collect();
    assert_eq!(
        asked,
        [
            "/v2/a/b/manifests/1?ns=registry.example",
            "/v2/library/c/manifests/2?ns=docker.io",
            "/v2/library/d/manifests/3?ns=docker.io"
        ]
    );
}

#[tokio::test]
async fn proxies_of_the_environment_are_used() {
    let mut machine = Machine::new();
    let proxy = FakeRegistry::start(&machine, Image::busybox(), |_| None);
    let directory = machine.path("certs.d/registry.example");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("hosts.toml"), "server = \"http://registry.example\"\n").unwrap();
    machine.environment = vec![
        ("HTTP_PROXY".into(), format!("http://{}", proxy.host)),
        ("NO_PROXY".into(), "127.0.0.1".into()),
    ];
    let daemon = machine.start().await;
    let cri = daemon.cri();
    cri.pull("registry.example/a:1").await.unwrap();
    let asked: Vec<String> = proxy.requests().into_iter().map(|request| request.path).collect();
    assert!(asked.iter().all(|path| path.starts_with("http://registry.example/v2/")), "{asked:?}");
    let direct = FakeRegistry::start(&machine, Image::busybox(), |_| None);
    cri.pull(&format!("{}/a:1", direct.host)).await.unwrap();
    assert!(direct.requests().iter().all(|request| request.path.starts_with("/v2/")));
}
