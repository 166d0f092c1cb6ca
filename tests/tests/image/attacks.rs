//! Hostile images: tars that try to write outside their layer, and images that exceed a limit.

use std::{fs, os::unix::fs::MetadataExt};

use berth_tests::{Entry, FakeRegistry, Image, Layer, gzip};
use serde_json::json;
use tar::EntryType;
use tonic::Code;

use crate::{assert_no_image, ready};

#[tokio::test]
async fn tars_that_attack_are_refused_and_touch_nothing() {
    let (machine, _daemon, cri) = ready().await;
    let outside = machine.path("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("secret"), "s").unwrap();
    let absolute = outside.join("planted").display().to_string();
    let relative = format!("{}{absolute}", "../".repeat(20).trim_end_matches('/'));
    let secret = outside.join("secret").display().to_string();
    let link_out = format!("{}{secret}", "../".repeat(20).trim_end_matches('/'));
    let device = Entry { kind: EntryType::new(b'Z'), name: "odd", ..Entry::default() };
    for (what, layer) in [
        ("..", Layer::new().file("a/../../x", b"x")),
        ("many ..", Layer::new().file(&relative, b"x")),
        ("absolute", Layer::new().file(&absolute, b"x")),
        ("hard link by ..", Layer::new().hard_link("x", &link_out)),
        ("hard link, absolute", Layer::new().hard_link("x", &secret)),
        (
            "hard link through a symlink",
            Layer::new()
                .symlink("out", &outside.display().to_string())
                .hard_link("x", "out/secret"),
        ),
        ("hard link to nothing", Layer::new().hard_link("x", "not/here")),
        ("whiteout of ..", Layer::new().file(".wh...", b"")),
        ("unknown type", Layer::new().entry(&device)),
        ("a hole of 3 GiB in some bytes", Layer::new().holes("x", &[3 << 30])),
        ("holes without end", Layer::new().holes("x", &(0..20_000).collect::<Vec<_>>())),
    ] {
        let registry = FakeRegistry::start(&machine, Image::simple(layer, &["true"]), |_| None);
        let error = cri.pull(&format!("{}/a:1", registry.host)).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{what}: {error}");
        assert!(error.message().contains("tar entry"), "{what}: {error}");
        machine.assert_clean().await;
        assert_no_image(&machine);
    }
    // A path through a symbolic link is resolved within the layer, so that nothing is written
    // outside of it.
    let through =
        Layer::new().symlink("out", &outside.display().to_string()).file("out/planted", b"x");
    let registry = FakeRegistry::start(&machine, Image::simple(through, &["true"]), |_| None);
    let _ = cri.pull(&format!("{}/a:1", registry.host)).await;
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::metadata(outside.join("secret")).unwrap().nlink(), 1);
    // A header that would fill the daemon's memory.
    let mut bomb = Layer::new().entry(&Entry {
        kind: EntryType::XHeader,
        name: "x",
        content: &vec![b'a'; 3 << 20],
        ..Entry::default()
    });
    bomb = bomb.file("x", b"x");
    let registry = FakeRegistry::start(&machine, Image::simple(bomb, &["true"]), |_| None);
    let error = cri.pull(&format!("{}/bomb:1", registry.host)).await.unwrap_err();
    assert!(error.message().contains("1 MiB"), "{error}");
}

#[tokio::test]
async fn what_is_too_large_is_refused_by_its_limit() {
    let (machine, _daemon, cri) = ready().await;
    let layer = |name: &str| Layer::new().file(name, b"x").bytes();
    let tars: Vec<Vec<u8>> = (0..128).map(|number| layer(&format!("f{number}"))).collect();
    let many = Image::new(
        &tars.iter().map(|tar| (tar.clone(), gzip(tar))).collect::<Vec<_>>(),
        &json!({}),
    );
    // A name of 256 bytes, which needs GNU's extra entry. NAME_MAX is 255.
    let long = Entry {
        kind: EntryType::GNULongName,
        name: "././@LongLink",
        content: &[b'n'; 256],
        ..Entry::default()
    };
    let long = Image::simple(Layer::new().entry(&long).file("n", b"x"), &["x"]);
    let large = Image::new(&[], &json!({ "Labels": { "l": "x".repeat(5 << 20) } }));
    let mut padded = Image::busybox();
    padded.manifest.extend(vec![b' '; 5 << 20]);
    for (image, what) in [
        (many, "128 layers; 127 is the limit"),
        (long, "File name too long"),
        (large, "larger than 4 MiB"),
        (padded, "larger than 4 MiB"),
    ] {
        let registry = FakeRegistry::start(&machine, image, |_| None);
        let error = cri.pull(&format!("{}/a:1", registry.host)).await.unwrap_err();
        assert!(error.message().contains(what), "{what}: {error}");
        assert_no_image(&machine);
    }
    machine.assert_clean().await;
}
