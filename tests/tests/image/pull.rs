//! PullImage from real registries and from registries that misbehave, and what is listed
//! afterwards.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use berth_proto::v1;
use berth_tests::{
    DockerRegistry, FakeRegistry, Image, Layer, Response, busybox, digest, eventually, gzip,
};
use serde_json::json;
use tonic::Code;

use crate::{assert_no_image, ready};

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
    // The same content under another name is the same image, and each of its names finds it.
    let other = registry.push(&machine, "copy", "latest", &image);
    assert_eq!(cri.pull("127.0.0.1:5000/copy").await.unwrap(), id);
    for known in [
        name.as_str(),
        other.as_str(),
        &by_digest,
        &id,
        &id["sha256:".len()..],
        &id["sha256:".len()..20],
    ] {
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
    // After a power loss a file that was not synced may have any content: then the index is the one
    // of the last sync.
    let synced = machine.path("root/images/index.json.synced");
    eventually("the sync", async || synced.exists()).await;
    daemon.kill();
    for damaged in ["{\"manifests\": [", ""] {
        fs::write(machine.path("root/images/index.json"), damaged).unwrap();
        let daemon = machine.start().await;
        let found = cri.image_status(&name).await.unwrap();
        assert_eq!(
            found.map(|image| image.id).as_ref(),
            Some(&id),
            "{damaged:?}: {}",
            daemon.log()
        );
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
async fn the_platform_is_chosen_from_an_index_and_docker_manifests_are_read() {
    let (machine, _daemon, cri) = ready().await;
    let tar = busybox().bytes();
    let mut image = Image::docker(
        &[(tar.clone(), gzip(&tar))],
        &json!({ "Cmd": ["true"], "Labels": null, "Volumes": null }),
    );
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let entry = |architecture: &str, digest: String| {
        json!({
            "mediaType": image.media_type,
            "digest": digest,
            "size": image.manifest.len(),
            "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let other = digest(b"of another machine");
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
        "manifests": [entry("s390x", other.clone()), entry(architecture, digest(&image.manifest))],
    });
    let none = json!({ "schemaVersion": 2, "manifests": [entry("s390x", other)] });
    let index = index.to_string().into_bytes();
    let none = none.to_string().into_bytes();
    let top = digest(&index);
    image.blobs.push(image.manifest.clone());
    let registry = FakeRegistry::start(&machine, image.clone(), move |request| {
        let body = match request.path.split('?').next()?.rsplit('/').next()? {
            "multi" => index.clone(),
            "none" => none.clone(),
            _ => return None,
        };
        Some(Response { status: 200, body, ..Response::default() })
    });
    let id = cri.pull(&format!("{}/a:multi", registry.host)).await.unwrap();
    assert_eq!(id, image.id);
    assert_eq!(
        cri.image_status(&id).await.unwrap().unwrap().repo_digests,
        [format!("{}/a@{top}", registry.host)]
    );
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
        let registry = FakeRegistry::start(&machine, Image::busybox(), move |_| {
            Some(Response { status, ..Response::default() })
        });
        let name = format!("{}/a:1", registry.host);
        let error = cri.pull(&name).await.unwrap_err();
        assert!(
            error.code() == code
                && error.message().contains(word)
                && error.message().contains(&name),
            "{status}: {error}"
        );
    }
    let down = cri.pull("127.0.0.1:1/a:1").await.unwrap_err();
    // The kubelet compares the beginning of the message, and only of errors with this code.
    assert!(
        down.code() == Code::Unknown && down.message().starts_with("RegistryUnavailable: "),
        "{down}"
    );
    for malformed in ["", "UPPER CASE", "a:b:c", "x/../y", "127.0.0.1:5000/", "a@sha256:12"] {
        assert_eq!(
            cri.pull(malformed).await.unwrap_err().code(),
            Code::InvalidArgument,
            "{malformed:?}"
        );
    }
    assert_no_image(&machine);
}

#[tokio::test]
async fn what_passes_is_tried_again_and_a_broken_download_resumes() {
    let (machine, _daemon, cri) = ready().await;
    let image = Image::busybox();
    let layer = digest(&image.blobs[0]);
    let half = image.blobs[0].len() / 2;
    let blob = image.blobs[0].clone();
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = tries.clone();
    let registry = FakeRegistry::start(&machine, image, move |request| {
        if request.path.contains("/manifests/") {
            match counted.fetch_add(1, Ordering::SeqCst) {
                0 => return Some(Response { status: 503, ..Response::default() }),
                1 => {
                    let headers = vec![("retry-after".to_owned(), "1".to_owned())];
                    return Some(Response { status: 429, headers, ..Response::default() });
                }
                _ => {}
            }
        }
        let whole = request.path.ends_with(&layer) && request.header("range").is_none();
        whole.then(|| Response {
            status: 200,
            body: blob.clone(),
            cut_after: Some(half),
            ..Response::default()
        })
    });
    let begun = Instant::now();
    cri.pull(&format!("{}/a:1", registry.host)).await.unwrap();
    assert!(begun.elapsed().as_secs() >= 1, "a registry that asks for a second gets it");
    assert_eq!(tries.load(Ordering::SeqCst), 3);
    let ranges: Vec<String> = registry
        .requests()
        .iter()
        .filter_map(|request| request.header("range").map(str::to_owned))
        .collect();
    assert_eq!(ranges, [format!("bytes={half}-")]);
}

#[tokio::test]
async fn wrong_and_truncated_content_is_refused_and_leaves_nothing() {
    let (machine, _daemon, cri) = ready().await;
    let image = Image::busybox();
    let layer = digest(&image.blobs[0]);
    let config = image.id.clone();
    let wrong = gzip(&busybox().file("more", b"x").bytes());
    let answers: Vec<(&str, String, Response)> = vec![
        (
            "another layer",
            layer.clone(),
            Response { status: 200, body: wrong, ..Response::default() },
        ),
        (
            "another config",
            config,
            Response { status: 200, body: b"{}".to_vec(), ..Response::default() },
        ),
        (
            "a truncated layer",
            layer.clone(),
            Response { status: 200, body: image.blobs[0][..1000].to_vec(), ..Response::default() },
        ),
        (
            "a longer layer",
            layer.clone(),
            Response {
                status: 200,
                body: [&image.blobs[0][..], b"more"].concat(),
                ..Response::default()
            },
        ),
        (
            "garbage",
            layer.clone(),
            Response { status: 200, body: vec![0x1f; image.blobs[0].len()], ..Response::default() },
        ),
        (
            "a cut connection",
            layer,
            Response {
                status: 200,
                body: image.blobs[0].clone(),
                cut_after: Some(0),
                ..Response::default()
            },
        ),
    ];
    for (what, path, answer) in answers {
        let registry = FakeRegistry::start(&machine, image.clone(), move |request| {
            request.path.ends_with(&path).then(|| answer.clone())
        });
        let error = cri.pull(&format!("{}/a:1", registry.host)).await.unwrap_err();
        assert!(
            matches!(error.code(), Code::Internal | Code::Unknown | Code::FailedPrecondition),
            "{what}: {error}"
        );
        assert!(error.message().contains("sha256:"), "{what}: {error}");
        machine.assert_clean().await;
        assert_no_image(&machine);
    }
    // A layer whose blob has the right digest, and whose tar is not the one that the config
    // promises (diff-id).
    let promised = busybox().bytes();
    let real = busybox().file("more", b"x").bytes();
    let registry =
        FakeRegistry::start(&machine, Image::new(&[(promised, gzip(&real))], &json!({})), |_| None);
    let error = cri.pull(&format!("{}/a:1", registry.host)).await.unwrap_err();
    assert!(error.message().contains("diff-id"), "{error}");
    // A tar that ends in the middle of a file, with digests that match.
    let short = Layer::new().file("a", &[1; 1000]).bytes()[..512 + 700].to_vec();
    let registry = FakeRegistry::start(
        &machine,
        Image::new(&[(short.clone(), gzip(&short))], &json!({})),
        |_| None,
    );
    let error = cri.pull(&format!("{}/a:1", registry.host)).await.unwrap_err();
    assert!(error.message().contains("\"a\": the tar ends within its content"), "{error}");
    machine.assert_clean().await;
    assert_no_image(&machine);
}

#[tokio::test]
async fn pulls_of_one_image_at_once_are_one_download() {
    let (machine, _daemon, cri) = ready().await;
    let image = Image::busybox();
    let layer = digest(&image.blobs[0]);
    let registry = FakeRegistry::start(&machine, image, |_| None);
    let name = format!("{}/a:1", registry.host);
    let pulls = (0..8).map(|_| {
        let cri = cri.clone();
        let name = name.clone();
        tokio::spawn(async move { cri.pull(&name).await })
    });
    for pull in pulls.collect::<Vec<_>>() {
        pull.await.unwrap().unwrap();
    }
    assert_eq!(
        registry.requests().iter().filter(|request| request.path.ends_with(&layer)).count(),
        1
    );
}
