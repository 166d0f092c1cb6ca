//! ImageService: real registries, registries that misbehave, tars that attack.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use berth_proto::v1;
use berth_tests::{
    Answer, Cri, Daemon, DockerRegistry, Entry, FakeRegistry, Image, Layer, Machine, busybox, container, digest,
    eventually, gzip, in_guest, pod,
};
use serde_json::json;
use tar::EntryType;
use tonic::Code;

async fn ready() -> (Machine, Daemon, Cri) {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    (machine, daemon, cri)
}

/// Nothing of a pull that failed is left.
fn assert_no_image(machine: &Machine) {
    let names = |name: &str| {
        let entries = fs::read_dir(machine.path(name)).unwrap().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).filter(|name| name != "empty").collect::<Vec<_>>()
    };
    assert_eq!(names("root/layers"), Vec::<String>::new());
    assert_eq!(names("root/images/blobs/sha256"), Vec::<String>::new());
}

#[tokio::test]
async fn an_image_of_a_real_registry_is_pulled_listed_and_removed() {
    let (machine, daemon, cri) = ready().await;
    let registry = DockerRegistry::start(&machine).await;
    let image = Image::busybox();
    let name = registry.push(&machine, "library/busybox", "1.0", &image);
    let id = cri.pull(&name).await.unwrap();
    assert_eq!(id, image.id);
    let status = cri.image_status(&name).await.unwrap().unwrap();
    let by_digest = format!("127.0.0.1:5000/library/busybox@{}", digest(&image.manifest));
    assert_eq!(
        (&status.id, &status.repo_tags, &status.repo_digests),
        (&id, &vec![name.clone()], &vec![by_digest.clone()])
    );
    assert!(status.size > 1 << 20 && status.uid.is_none() && status.username.is_empty());
    // The same content under another name is the same image; every name finds it.
    let other = registry.push(&machine, "copy", "latest", &image);
    assert_eq!(cri.pull("127.0.0.1:5000/copy").await.unwrap(), id);
    for known in [name.as_str(), other.as_str(), &by_digest, &id, &id["sha256:".len()..], &id["sha256:".len()..20]] {
        assert_eq!(cri.image_status(known).await.unwrap().unwrap().id, id, "{known}");
    }
    assert_eq!(cri.images().await.len(), 1);
    for known in [&by_digest, &name] {
        assert_eq!(cri.pull(known).await.unwrap(), id);
    }
    assert_eq!(daemon.log().matches("is up to date").count(), 2, "{}", daemon.log());
    let usage = cri
        .images
        .clone()
        .image_fs_info(v1::ImageFsInfoRequest {})
        .await
        .unwrap()
        .into_inner()
        .image_filesystems
        .remove(0);
    assert!(
        usage.used_bytes.unwrap().value >= status.size
            && fs::exists(usage.fs_id.unwrap().mountpoint).unwrap()
            && usage.timestamp > 0
    );
    cri.remove_image(&name).await.unwrap();
    assert!(cri.images().await.is_empty() && cri.image_status(&other).await.unwrap().is_none());
    machine.assert_clean().await;
    assert_no_image(&machine);
}

#[tokio::test]
async fn a_machine_without_certificate_authorities_can_still_pull_where_it_is_told_whom_to_trust() {
    let machine = Machine::new();
    assert!(machine.command("mount").args(["-t", "tmpfs", "none", "/etc/ssl"]).status().unwrap().success());
    let daemon = machine.start().await;
    let cri = daemon.cri();
    cri.pull_image(&machine, Image::busybox()).await;
    let (registry, certificate) = DockerRegistry::start_tls(&machine).await;
    let name = registry.push_tls(&machine, "other", "1", &Image::simple(Layer::new().file("x", b"x"), &["x"]));
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
    for (trust, pulls) in [("", false), ("skip_verify = true\n", true), (&format!("ca = {certificate:?}\n"), true)] {
        fs::write(directory.join("hosts.toml"), format!("{server}{trust}")).unwrap();
        let pulled = cri.pull(&name).await;
        assert_eq!(pulled.is_ok(), pulls, "{trust}: {pulled:?}");
        if let Err(error) = pulled {
            assert!(error.code() == Code::Unknown && error.message().contains("certificate"), "{error}");
        }
        cri.remove_image(&name).await.unwrap();
    }
}

#[tokio::test]
async fn images_survive_a_restart_and_a_damaged_index_is_set_aside() {
    let (machine, daemon, cri) = ready().await;
    let registry = FakeRegistry::start(&machine, Image::busybox(), |_| None);
    let name = format!("{}/a:1", registry.host);
    let id = cri.pull(&name).await.unwrap();
    daemon.kill();
    let daemon = machine.start().await;
    assert_eq!(cri.image_status(&name).await.unwrap().unwrap().id, id);
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(machine.path("root/images/index.json")).unwrap()).unwrap();
    assert!(
        index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .any(|m| m["annotations"]["org.opencontainers.image.ref.name"] == name.as_str())
    );
    // A power loss may leave anything of what was not synced: then it is as it was at the last sync.
    let synced = machine.path("root/images/index.json.synced");
    eventually("the sync", async || synced.exists()).await;
    daemon.kill();
    for damaged in ["{\"manifests\": [", ""] {
        fs::write(machine.path("root/images/index.json"), damaged).unwrap();
        let daemon = machine.start().await;
        let found = cri.image_status(&name).await.unwrap();
        assert_eq!(found.map(|image| image.id).as_ref(), Some(&id), "{damaged:?}: {}", daemon.log());
        assert!(machine.path("root/images/index.json.damaged").exists());
        daemon.kill();
    }
    fs::write(machine.path("root/images/index.json"), "[]").unwrap();
    fs::write(&synced, "{").unwrap();
    let _daemon = machine.start().await;
    assert!(cri.images().await.is_empty());
    assert_eq!(cri.pull(&name).await.unwrap(), id);
}

#[tokio::test]
async fn layers_of_every_kind_stack_up() {
    let (machine, _daemon, cri) = ready().await;
    let base = busybox()
        .directory("data", 0o750)
        .file("data/lower", b"1")
        .directory("hidden", 0o755)
        .file("hidden/x", b"1")
        .file("gone", b"1");
    // Parents left out: they keep what the layer below says of them.
    let upper = Layer::new()
        .file("data/upper", b"2")
        .file(".wh.gone", b"")
        .file("hidden/.wh..wh..opq", b"")
        .file("hidden/y", b"2");
    let owned = Entry { name: "owned", mode: 0o4750, owner: 1234, content: b"3", ..Entry::default() };
    let top = Layer::new()
        .entry(&owned)
        .symlink("link", "/etc/passwd")
        .hard_link("linked", "owned")
        .directory("data", 0o711)
        .file("data/top", b"3");
    let (base, upper, top) = (base.bytes(), upper.bytes(), top.bytes());
    let layers = [
        (base.clone(), gzip(&base)),
        (upper.clone(), zstd::encode_all(upper.as_slice(), 3).unwrap()),
        (top.clone(), top.clone()),
    ];
    let image =
        Image::new(&layers, &json!({ "Entrypoint": ["sleep"], "Cmd": ["1000"], "WorkingDir": "/data", "User": "0:0" }));
    let registry = FakeRegistry::start(&machine, image, |_| None);
    let name = format!("{}/layers", registry.host);
    cri.pull(&name).await.unwrap();
    let sandbox = cri.run_pod(pod(&machine, "layers")).await.unwrap();
    let mut config = container("c", &name, "");
    config.command = vec![];
    let id = cri.run(&sandbox, config).await.unwrap();
    assert_eq!(
        cri.sh(&id, "pwd; ls; ls /hidden; ls / | grep -c gone || true; cat link 2>/dev/null; head -1 /link").await,
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
    assert!(directory.file_name().unwrap().to_str().unwrap().starts_with("chain-"), "{directory:?}");
    assert_eq!(fs::metadata(directory.join("fs/data")).unwrap().mode() & 0o7777, 0o750);
    assert!(fs::metadata(directory.join("fs/gone")).unwrap().file_type().is_char_device());
    // An image that goes stays for its container.
    cri.remove_image(&name).await.unwrap();
    assert_eq!(cri.sh(&id, "cat /data/lower").await, "1");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
    assert_no_image(&machine);
}

#[tokio::test]
async fn the_platform_is_chosen_from_an_index_and_docker_manifests_are_read() {
    let (machine, _daemon, cri) = ready().await;
    let tar = busybox().bytes();
    let mut image =
        Image::docker(&[(tar.clone(), gzip(&tar))], &json!({ "Cmd": ["true"], "Labels": null, "Volumes": null }));
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let entry = |architecture: &str, digest: String| json!({ "mediaType": image.media_type, "digest": digest, "size": image.manifest.len(), "platform": { "os": "linux", "architecture": architecture } });
    let other = digest(b"of another machine");
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
        "manifests": [entry("s390x", other.clone()), entry(architecture, digest(&image.manifest))],
    });
    let none = json!({ "schemaVersion": 2, "manifests": [entry("s390x", other)] });
    let (index, none) = (index.to_string().into_bytes(), none.to_string().into_bytes());
    let top = digest(&index);
    image.blobs.push(image.manifest.clone());
    let registry = FakeRegistry::start(&machine, image.clone(), move |asked| {
        let body = match asked.path.split('?').next()?.rsplit('/').next()? {
            "multi" => index.clone(),
            "none" => none.clone(),
            _ => return None,
        };
        Some(Answer { status: 200, body, ..Answer::default() })
    });
    let id = cri.pull(&format!("{}/a:multi", registry.host)).await.unwrap();
    assert_eq!(id, image.id);
    assert_eq!(cri.image_status(&id).await.unwrap().unwrap().repo_digests, [format!("{}/a@{top}", registry.host)]);
    let none = cri.pull(&format!("{}/a:none", registry.host)).await.unwrap_err();
    assert!(none.code() == Code::NotFound && none.message().contains("s390x"), "{none}");
}

#[tokio::test]
async fn registries_that_refuse_or_fail_are_told_apart() {
    let (machine, _daemon, cri) = ready().await;
    for (status, code, word) in [
        (401, Code::Unauthenticated, "401"),
        (403, Code::PermissionDenied, "403"),
        (404, Code::NotFound, "404"),
        (429, Code::Unknown, "429"),
        (500, Code::Unknown, "500"),
    ] {
        let registry =
            FakeRegistry::start(&machine, Image::busybox(), move |_| Some(Answer { status, ..Answer::default() }));
        let name = format!("{}/a:1", registry.host);
        let error = cri.pull(&name).await.unwrap_err();
        assert!(
            error.code() == code && error.message().contains(word) && error.message().contains(&name),
            "{status}: {error}"
        );
    }
    let down = cri.pull("127.0.0.1:1/a:1").await.unwrap_err();
    // The kubelet looks at the text's beginning, and only at errors of this code.
    assert!(down.code() == Code::Unknown && down.message().starts_with("RegistryUnavailable: "), "{down}");
    for malformed in ["", "UPPER CASE", "a:b:c", "x/../y", "127.0.0.1:5000/", "a@sha256:12"] {
        assert_eq!(cri.pull(malformed).await.unwrap_err().code(), Code::InvalidArgument, "{malformed:?}");
    }
    assert_no_image(&machine);
}

#[tokio::test]
async fn what_passes_is_tried_again_and_a_broken_download_resumes() {
    let (machine, _daemon, cri) = ready().await;
    let image = Image::busybox();
    let (layer, half) = (digest(&image.blobs[0]), image.blobs[0].len() / 2);
    let (blob, tries) = (image.blobs[0].clone(), Arc::new(AtomicUsize::new(0)));
    let counted = tries.clone();
    let registry = FakeRegistry::start(&machine, image, move |asked| {
        if asked.path.contains("/manifests/") {
            match counted.fetch_add(1, Ordering::SeqCst) {
                0 => return Some(Answer { status: 503, ..Answer::default() }),
                1 => {
                    let headers = vec![("retry-after".to_owned(), "1".to_owned())];
                    return Some(Answer { status: 429, headers, ..Answer::default() });
                }
                _ => {}
            }
        }
        let whole = asked.path.ends_with(&layer) && asked.header("range").is_none();
        whole.then(|| Answer { status: 200, body: blob.clone(), cut_after: Some(half), ..Answer::default() })
    });
    let begun = Instant::now();
    cri.pull(&format!("{}/a:1", registry.host)).await.unwrap();
    assert!(begun.elapsed().as_secs() >= 1, "a registry that asks for a second gets it");
    assert_eq!(tries.load(Ordering::SeqCst), 3);
    let ranges: Vec<String> =
        registry.asked().iter().filter_map(|asked| asked.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges, [format!("bytes={half}-")]);
}

#[tokio::test]
async fn wrong_and_truncated_content_is_refused_and_leaves_nothing() {
    let (machine, _daemon, cri) = ready().await;
    let image = Image::busybox();
    let (layer, config) = (digest(&image.blobs[0]), image.id.clone());
    let wrong = gzip(&busybox().file("more", b"x").bytes());
    let answers: Vec<(&str, String, Answer)> = vec![
        ("another layer", layer.clone(), Answer { status: 200, body: wrong, ..Answer::default() }),
        ("another config", config, Answer { status: 200, body: b"{}".to_vec(), ..Answer::default() }),
        (
            "a truncated layer",
            layer.clone(),
            Answer { status: 200, body: image.blobs[0][..1000].to_vec(), ..Answer::default() },
        ),
        (
            "a longer layer",
            layer.clone(),
            Answer { status: 200, body: [&image.blobs[0][..], b"more"].concat(), ..Answer::default() },
        ),
        ("garbage", layer.clone(), Answer { status: 200, body: vec![0x1f; image.blobs[0].len()], ..Answer::default() }),
        (
            "a cut connection",
            layer,
            Answer { status: 200, body: image.blobs[0].clone(), cut_after: Some(0), ..Answer::default() },
        ),
    ];
    for (what, path, answer) in answers {
        let registry = FakeRegistry::start(&machine, image.clone(), move |asked| {
            asked.path.ends_with(&path).then(|| answer.clone())
        });
        let error = cri.pull(&format!("{}/a:1", registry.host)).await.unwrap_err();
        assert!(matches!(error.code(), Code::Internal | Code::Unknown | Code::FailedPrecondition), "{what}: {error}");
        assert!(error.message().contains("sha256:"), "{what}: {error}");
        machine.assert_clean().await;
        assert_no_image(&machine);
    }
    // Another tar than the config promises: the digest of the blob is right, the diff-id is not.
    let (promised, real) = (busybox().bytes(), busybox().file("more", b"x").bytes());
    let registry = FakeRegistry::start(&machine, Image::new(&[(promised, gzip(&real))], &json!({})), |_| None);
    let error = cri.pull(&format!("{}/a:1", registry.host)).await.unwrap_err();
    assert!(error.message().contains("diff-id"), "{error}");
    // A tar that ends within a file, as its digests say it should.
    let short = Layer::new().file("a", &[1; 1000]).bytes()[..512 + 700].to_vec();
    let registry = FakeRegistry::start(&machine, Image::new(&[(short.clone(), gzip(&short))], &json!({})), |_| None);
    let error = cri.pull(&format!("{}/a:1", registry.host)).await.unwrap_err();
    assert!(error.message().contains("\"a\": the tar ends within its content"), "{error}");
    machine.assert_clean().await;
    assert_no_image(&machine);
}

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
            Layer::new().symlink("out", &outside.display().to_string()).hard_link("x", "out/secret"),
        ),
        ("hard link to nothing", Layer::new().hard_link("x", "not/here")),
        ("whiteout of ..", Layer::new().file(".wh...", b"")),
        ("unknown type", Layer::new().entry(&device)),
    ] {
        let registry = FakeRegistry::start(&machine, Image::simple(layer, &["true"]), |_| None);
        let error = cri.pull(&format!("{}/a:1", registry.host)).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{what}: {error}");
        assert!(error.message().contains("tar entry"), "{what}: {error}");
        machine.assert_clean().await;
        assert_no_image(&machine);
    }
    // Through a symbolic link the layer is the whole world: nothing lands outside.
    let through = Layer::new().symlink("out", &outside.display().to_string()).file("out/planted", b"x");
    let registry = FakeRegistry::start(&machine, Image::simple(through, &["true"]), |_| None);
    let _ = cri.pull(&format!("{}/a:1", registry.host)).await;
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::metadata(outside.join("secret")).unwrap().nlink(), 1);
    // A header that would fill the memory.
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
async fn credentials_go_where_they_belong() {
    let (machine, _daemon, cri) = ready().await;
    let token_server = FakeRegistry::start(&machine, Image::busybox(), |asked| {
        let basic = asked.header("authorization") == Some("Basic dTpw");
        let body =
            if basic { br#"{"token":"the-token"}"#.to_vec() } else { br#"{"access_token":"anonymous"}"#.to_vec() };
        Some(Answer { status: 200, body, ..Answer::default() })
    });
    let challenge =
        format!("Bearer realm=\"http://{}/token\",service=\"s\",scope=\"repository:a:pull\"", token_server.host);
    let bearer = FakeRegistry::start(&machine, Image::busybox(), move |asked| {
        let known = asked.header("authorization") == Some("Bearer the-token");
        let headers = vec![("www-authenticate".to_owned(), challenge.clone())];
        (!known).then(|| Answer { status: 401, headers, ..Answer::default() })
    });
    let basic = FakeRegistry::start(&machine, Image::busybox(), |asked| {
        let known = asked.header("authorization") == Some("Basic dTpw");
        let headers = vec![("www-authenticate".to_owned(), "Basic realm=\"x\"".to_owned())];
        (!known).then(|| Answer { status: 401, headers, ..Answer::default() })
    });
    let pull = async |host: &str, auth: v1::AuthConfig| {
        let image = Some(v1::ImageSpec { image: format!("{host}/a:1"), ..Default::default() });
        let request = v1::PullImageRequest { image, auth: Some(auth), sandbox_config: None };
        cri.images.clone().pull_image(request).await.map(|answer| answer.into_inner().image_ref)
    };
    let password = v1::AuthConfig { username: "u".into(), password: "p".into(), ..Default::default() };
    let encoded = v1::AuthConfig { auth: "dTpw".into(), ..Default::default() };
    for host in [&bearer.host, &basic.host] {
        assert_eq!(pull(host, v1::AuthConfig::default()).await.unwrap_err().code(), Code::Unauthenticated);
        assert!(pull(host, password.clone()).await.is_ok() && pull(host, encoded.clone()).await.is_ok());
        // That it is here already opens it to nobody.
        assert_eq!(pull(host, v1::AuthConfig::default()).await.unwrap_err().code(), Code::Unauthenticated);
        let elsewhere = v1::AuthConfig { server_address: "other.example".into(), ..password.clone() };
        cri.remove_image(&format!("{host}/a:1")).await.unwrap();
        assert_eq!(pull(host, elsewhere).await.unwrap_err().code(), Code::Unauthenticated);
    }
    assert!(
        token_server
            .asked()
            .iter()
            .any(|asked| asked.path.contains("service=s") && asked.path.contains("scope=repository"))
    );
}

#[tokio::test]
async fn mirrors_are_asked_first_and_the_next_when_one_is_down() {
    let (machine, _daemon, cri) = ready().await;
    let mirror = FakeRegistry::start(&machine, Image::busybox(), |_| None);
    let text =
        format!("server = \"http://127.0.0.1:1\"\n[host.\"http://127.0.0.1:2\"]\n[host.\"http://{}\"]\n", mirror.host);
    for directory in ["_default", "registry.example"] {
        fs::create_dir_all(machine.path("certs.d").join(directory)).unwrap();
        fs::write(machine.path("certs.d").join(directory).join("hosts.toml"), &text).unwrap();
    }
    for name in ["registry.example/a/b:1", "docker.io/library/c:2", "d:3"] {
        cri.pull(name).await.unwrap();
        assert!(cri.image_status(name).await.unwrap().is_some());
    }
    let asked: Vec<String> =
        mirror.asked().into_iter().map(|asked| asked.path).filter(|path| path.contains("/manifests/")).collect();
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
async fn pulls_of_one_image_at_once_are_one_download() {
    let (machine, _daemon, cri) = ready().await;
    let image = Image::busybox();
    let layer = digest(&image.blobs[0]);
    let registry = FakeRegistry::start(&machine, image, |_| None);
    let name = format!("{}/a:1", registry.host);
    let pulls = (0..8).map(|_| {
        let (cri, name) = (cri.clone(), name.clone());
        tokio::spawn(async move { cri.pull(&name).await })
    });
    for pull in pulls.collect::<Vec<_>>() {
        pull.await.unwrap().unwrap();
    }
    assert_eq!(registry.asked().iter().filter(|asked| asked.path.ends_with(&layer)).count(), 1);
}

#[tokio::test]
async fn a_full_disk_and_a_read_only_one_are_told_and_leave_nothing() {
    let machine = Machine::new();
    let (root, state): (PathBuf, PathBuf) = (machine.path("root"), machine.path("state"));
    fs::create_dir_all(&root).unwrap();
    if in_guest() {
        // Its kernel has no loop devices.
        machine.output("mount", &["-t", "tmpfs", "-o", "size=200m", "tmpfs", root.to_str().unwrap()]);
    } else {
        let disk = machine.path("disk");
        fs::File::create(&disk).unwrap().set_len(200 << 20).unwrap();
        machine.output("mkfs.ext4", &["-q", disk.to_str().unwrap()]);
        machine.output("mount", &["-o", "loop", disk.to_str().unwrap(), root.to_str().unwrap()]);
    }
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let large = Image::simple(busybox().file("big", &vec![7; 220 << 20]), &["true"]);
    let registry = FakeRegistry::start(&machine, large, |_| None);
    let full = cri.pull(&format!("{}/big:1", registry.host)).await.unwrap_err();
    assert!(full.code() == Code::ResourceExhausted && full.message().contains("No space left"), "{full}");
    let registry = FakeRegistry::start(&machine, Image::busybox(), |_| None);
    let name = format!("{}/a:1", registry.host);
    cri.pull(&name).await.expect("there is room again");
    // Not before what the daemon does in the background is done.
    let mut remount = machine.command("mount");
    remount.args(["-o", "remount,ro"]).arg(&root);
    eventually("a disk that nobody writes to", async || remount.output().unwrap().status.success()).await;
    for error in [
        cri.run_pod(pod(&machine, "p")).await.unwrap_err(),
        cri.pull("127.0.0.1:1/other").await.unwrap_err(),
        cri.remove_image(&name).await.unwrap_err(),
    ] {
        assert!(!error.message().is_empty() && error.code() != Code::Ok, "{error}");
    }
    let status = cri.runtime.clone().status(v1::StatusRequest::default()).await.unwrap().into_inner().status.unwrap();
    assert!(!status.conditions.iter().find(|condition| condition.r#type == "RuntimeReady").unwrap().status);
    machine.output("mount", &["-o", "remount,rw", root.to_str().unwrap()]);
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    cri.remove_pod(&sandbox).await.unwrap();
    drop(daemon);
    machine.output("umount", &[root.to_str().unwrap()]);
    assert!(fs::read_dir(state.join("sandboxes")).unwrap().next().is_none());
}

#[tokio::test]
async fn what_is_too_large_is_refused_by_its_limit() {
    let (machine, _daemon, cri) = ready().await;
    let layer = |name: &str| Layer::new().file(name, b"x").bytes();
    let tars: Vec<Vec<u8>> = (0..128).map(|number| layer(&format!("f{number}"))).collect();
    let many = Image::new(&tars.iter().map(|tar| (tar.clone(), gzip(tar))).collect::<Vec<_>>(), &json!({}));
    // A name of 256 bytes comes by GNU's extra entry.
    let long = Entry { kind: EntryType::GNULongName, name: "././@LongLink", content: &[b'n'; 256], ..Entry::default() };
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

#[tokio::test]
async fn proxies_of_the_environment_are_used() {
    let mut machine = Machine::new();
    let proxy = FakeRegistry::start(&machine, Image::busybox(), |_| None);
    let directory = machine.path("certs.d/registry.example");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("hosts.toml"), "server = \"http://registry.example\"\n").unwrap();
    machine.environment =
        vec![("HTTP_PROXY".into(), format!("http://{}", proxy.host)), ("NO_PROXY".into(), "127.0.0.1".into())];
    let daemon = machine.start().await;
    let cri = daemon.cri();
    cri.pull("registry.example/a:1").await.unwrap();
    let asked: Vec<String> = proxy.asked().into_iter().map(|asked| asked.path).collect();
    assert!(asked.iter().all(|path| path.starts_with("http://registry.example/v2/")), "{asked:?}");
    let direct = FakeRegistry::start(&machine, Image::busybox(), |_| None);
    cri.pull(&format!("{}/a:1", direct.host)).await.unwrap();
    assert!(direct.asked().iter().all(|asked| asked.path.starts_with("/v2/")));
}
