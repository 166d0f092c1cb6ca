//! Layers on disk: how tars of every kind become the root filesystem of a container.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
};

use berth_tests::{Entry, FakeRegistry, Image, Layer, busybox, container, gzip, pod};
use serde_json::json;

use crate::{assert_no_image, ready};

#[tokio::test]
async fn layers_of_every_kind_stack_up() {
    let (machine, _daemon, cri) = ready().await;
    let base = busybox()
        .directory("data", 0o750)
        .file("data/lower", b"1")
        .directory("hidden", 0o755)
        .file("hidden/x", b"1")
        .file("gone", b"1");
    // Parent directories that the upper layer leaves out keep the modes of the layer below.
    let upper = Layer::new()
        .file("data/upper", b"2")
        .file(".wh.gone", b"")
        .file("hidden/.wh..wh..opq", b"")
        .file("hidden/y", b"2");
    let owned =
        Entry { name: "owned", mode: 0o4750, owner: 1234, content: b"3", ..Entry::default() };
    let top = Layer::new()
        .entry(&owned)
        .symlink("link", "/etc/passwd")
        .hard_link("linked", "owned")
        .directory("data", 0o711)
        .file("data/top", b"3");
    let base = base.bytes();
    let upper = upper.bytes();
    let top = top.bytes();
    let layers = [
        (base.clone(), gzip(&base)),
        (upper.clone(), zstd::encode_all(upper.as_slice(), 3).unwrap()),
        (top.clone(), top.clone()),
    ];
    let image = Image::new(
        &layers,
        &json!({ "Entrypoint": ["sleep"], "Cmd": ["1000"], "WorkingDir": "/data", "User": "0:0" }),
    );
    let registry = FakeRegistry::start(&machine, image, |_| None);
    let name = format!("{}/layers", registry.host);
    cri.pull(&name).await.unwrap();
    let sandbox = cri.run_pod(pod(&machine, "layers")).await.unwrap();
    let mut config = container("c", &name, "");
    config.command = vec![];
    let id = cri.run(&sandbox, config).await.unwrap();
    assert_eq!(
        cri.sh(
            &id,
            "pwd; ls; ls /hidden; ls / | grep -c gone || true; cat link 2>/dev/null; head -1 /link"
        )
        .await,
        "/data\nlower\ntop\nupper\ny\n0\nroot:x:0:0:root:/root:/bin/sh\n"
    );
    assert_eq!(
        cri.sh(&id, "stat -c '%a %u %g %h %Y' /owned; stat -c %a /data").await,
        "4750 1234 1234 2 1700000000\n711\n"
    );
    let directory = fs::read_dir(machine.path("root/layers"))
        .unwrap()
        .flatten()
        .find(|entry| entry.path().join("fs/data/upper").exists())
        .unwrap()
        .path();
    assert!(
        directory.file_name().unwrap().to_str().unwrap().starts_with("chain-"),
        "{directory:?}"
    );
    assert_eq!(fs::metadata(directory.join("fs/data")).unwrap().mode() & 0o7777, 0o750);
    assert!(fs::metadata(directory.join("fs/gone")).unwrap().file_type().is_char_device());
    // The layers of a removed image stay for the containers that run on them.
    cri.remove_image(&name).await.unwrap();
    assert_eq!(cri.sh(&id, "cat /data/lower").await, "1");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
    assert_no_image(&machine);
}
