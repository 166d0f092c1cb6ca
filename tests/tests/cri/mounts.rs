//! Mounts: volumes of the request, volumes that an image declares, and the files of other images.

use std::{fs, time::Instant};

use berth_proto::v1;
use berth_tests::{
    Config, DockerRegistry, Entry, Image, Layer, bind, busybox, container, digest, gzip,
    image_mount, pod, ready,
};
use serde_json::json;
use tonic::Code;

/// An image of busybox and one more layer.
fn image(top: Layer, config: &serde_json::Value) -> Image {
    let base = busybox().bytes();
    let top = top.bytes();
    Image::new(&[(base.clone(), gzip(&base)), (top.clone(), gzip(&top))], config)
}

fn with(mut config: v1::ContainerConfig, mounts: Vec<v1::Mount>) -> v1::ContainerConfig {
    config.mounts = mounts;
    config
}

#[tokio::test]
async fn volumes_of_the_image_are_filled_and_writable_and_go_with_the_container() {
    let (machine, _daemon, cri, _) = ready().await;
    let layer = Layer::new()
        .directory("data", 0o750)
        .directory("data/sub", 0o755)
        .file("data/sub/file", b"from the image")
        .entry(&Entry {
            name: "data/owned",
            owner: 1000,
            mode: 0o4711,
            content: b"x",
            ..Entry::default()
        })
        .symlink("data/link", "/etc/passwd")
        .file("single", b"no directory");
    let config = json!({
        "Cmd": ["sleep", "1000"],
        "Volumes": { "/data": {}, "/fresh/deep": {}, "/given": {} },
    });
    let name = cri.pull_image(&machine, image(layer, &config)).await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    fs::create_dir(machine.path("given")).unwrap();
    let mut wanted =
        with(container("c", &name, "sleep 1000"), vec![bind(&machine.path("given"), "/given")]);
    wanted.security().readonly_rootfs = true;
    let id = cri.run(&sandbox, wanted).await.unwrap();

    let said = cri
        .sh(
            &id,
            "cat /data/sub/file; readlink /data/link; stat -c '%a %u %g' /data \
            /data/owned /fresh/deep",
        )
        .await;
    assert_eq!(said, "from the image/etc/passwd\n750 0 0\n4711 1000 1000\n755 0 0\n");
    cri.sh(&id, "echo new > /data/sub/file; echo a > /fresh/deep/a; echo b > /given/b").await;
    assert_eq!(fs::read_to_string(machine.path("given/b")).unwrap(), "b\n");
    // A directory of the host, not one of the container's overlay.
    let types = cri
        .sh(
            &id,
            "grep -c ' / overlay ' /proc/mounts; grep -E ' (/data|/fresh/deep) ' /proc/mounts | \
                grep -c overlay || true",
        )
        .await;
    assert_eq!(types, "1\n0\n");
    assert_eq!(cri.status(&id).await.unwrap().mounts.len(), 1, "only what was asked for");
    cri.sh(&id, "dd if=/dev/zero of=/fresh/deep/zeroes bs=1M count=3 2>/dev/null").await;
    let request = v1::ContainerStatsRequest { container_id: id.clone() };
    let stats =
        cri.runtime.clone().container_stats(request).await.unwrap().into_inner().stats.unwrap();
    assert!(
        stats.writable_layer.unwrap().used_bytes.unwrap().value >= 3 << 20,
        "volumes count as written"
    );
    let again = cri.run(&sandbox, container("d", &name, "cat /data/sub/file")).await.unwrap();
    assert_eq!(cri.exited(&again).await.exit_code, 0);
    let log = fs::read_to_string(machine.path("logs/p/d.log")).unwrap();
    assert!(
        log.ends_with("from the image\n"),
        "the next container starts from the image again: {log}"
    );

    let broken = json!({ "Volumes": { "/single": {} } });
    let name = cri.pull_image(&machine, image(Layer::new().file("single", b"x"), &broken)).await;
    let refused = cri.run(&sandbox, container("e", &name, "true")).await.unwrap_err();
    assert!(refused.message().contains("/single"), "{refused}");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn files_of_another_image_are_mounted_read_only_and_stay_while_they_are_used() {
    let (machine, _daemon, cri, busybox) = ready().await;
    let layer = Layer::new()
        .directory("model", 0o755)
        .file("model/weights", b"42")
        .entry(&Entry {
            name: "model/tool",
            mode: 0o755,
            content: b"#!/bin/sh\necho runs\n",
            ..Entry::default()
        })
        .symlink("latest", "/model");
    let artifact = cri.pull_image(&machine, image(layer, &json!({}))).await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let mount = |target: &str, sub_path: &str| image_mount(&artifact, target, sub_path);
    let mounts =
        vec![mount("/whole", ""), mount("/part", "latest"), mount("/one", "model/weights")];
    let id = cri.run(&sandbox, with(container("c", &busybox, "sleep 1000"), mounts)).await.unwrap();
    assert_eq!(
        cri.sh(&id, "cat /whole/model/weights /part/weights /one; /part/tool").await,
        "424242runs\n"
    );
    let written = cri.exec(&id, &["touch", "/part/new"], 5).await.unwrap();
    assert!(
        written.exit_code != 0
            && String::from_utf8_lossy(&written.stderr).contains("Read-only file system")
    );
    let status = cri.status(&id).await.unwrap();
    let image_ref = &status.mounts[1].image.as_ref().unwrap().image_ref;
    assert!(
        image_ref.contains("@sha256:") && status.mounts[1].image_sub_path == "latest",
        "{:?}",
        status.mounts
    );

    cri.remove_image(&artifact).await.unwrap();
    assert_eq!(cri.sh(&id, "cat /whole/model/weights").await, "42");

    let refused = |mounts| cri.create(&sandbox, with(container("e", &busybox, "true"), mounts));
    for (mount, code, what) in [
        (mount("/x", ""), Code::NotFound, "pull it first"),
        (v1::Mount { readonly: false, ..mount("/x", "") }, Code::InvalidArgument, "not read-only"),
        (v1::Mount { host_path: "/tmp".into(), ..mount("/x", "") }, Code::InvalidArgument, "both"),
    ] {
        let error = refused(vec![mount]).await.unwrap_err();
        assert!(error.code() == code && error.message().contains(what), "{error}");
    }
    for path in ["nothing", "../../../../etc/shadow-of-nothing", "bin/sh/x"] {
        let error = refused(vec![image_mount(&busybox, "/x", path)]).await.unwrap_err();
        assert!(
            error.code() == Code::InvalidArgument
                && error.message().contains("ImageVolumeMountFailed"),
            "{error}"
        );
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
    let layers: Vec<_> = fs::read_dir(machine.path("root/layers"))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(layers.len(), 2, "busybox' and the empty one: {layers:?}");
}

#[tokio::test]
async fn options_are_in_force_and_what_contradicts_itself_is_refused() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    fs::create_dir(machine.path("v")).unwrap();
    let options = |target: &str, options: &[&str]| v1::Mount {
        mount_options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..bind(&machine.path("v"), target)
    };
    let mounts = vec![
        options("/all", &["noexec", "nosuid", "nodev"]),
        options("/last", &["noexec", "exec"]),
    ];
    let id = cri.run(&sandbox, with(container("c", &image, "sleep 1000"), mounts)).await.unwrap();
    let line = cri.sh(&id, "grep -E ' (/all|/last) ' /proc/mounts").await;
    let (all, last) = line.split_once('\n').unwrap();
    assert!(
        ["noexec", "nosuid", "nodev"].iter().all(|option| all.contains(option))
            && !last.contains("noexec"),
        "{line}"
    );
    assert_eq!(cri.status(&id).await.unwrap().mounts[1].mount_options, ["noexec", "exec"]);

    let recursive = v1::Mount { recursive_read_only: true, ..bind(&machine.path("v"), "/r") };
    let shared = v1::Mount {
        readonly: true,
        propagation: v1::MountPropagation::PropagationBidirectional.into(),
        ..recursive.clone()
    };
    for (mounts, what) in [
        (vec![options("/x", &["noexecs"])], "noexecs"),
        (vec![bind(&machine.path("v"), "/x"), bind(&machine.path("v"), "/x/.")], "two of them"),
        (vec![bind(&machine.path("v"), "/")], "cannot be mounted on"),
        (vec![recursive], "RROUnsupported"),
        (vec![shared], "RROUnsupported"),
    ] {
        let error =
            cri.create(&sandbox, with(container("e", &image, "true"), mounts)).await.unwrap_err();
        assert!(error.code() == Code::InvalidArgument && error.message().contains(what), "{error}");
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// A volume on a FUSE filesystem whose daemon never answers: the start is given up, and the error
/// says for what it waited.
#[tokio::test]
async fn a_volume_that_does_not_answer_is_named_and_blocks_nobody_else() {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let dead = machine.path("dead");
    fs::create_dir(&dead).unwrap();
    let fuse = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
    // Mounted in the daemon's mount namespace, which is not the one of this process.
    let mounted = machine
        .command("mount")
        .args(["-i", "-t", "fuse", "-o"])
        .arg("fd=0,rootmode=40000,user_id=0,group_id=0")
        .arg("dead")
        .arg(&dead)
        .stdin(fuse.try_clone().unwrap())
        .status()
        .unwrap();
    assert!(mounted.success());
    let id = cri
        .create(&sandbox, with(container("c", &image, "true"), vec![bind(&dead.join("sub"), "/v")]))
        .await
        .unwrap();
    let begun = Instant::now();
    let other = async { cri.run(&sandbox, container("d", &image, "sleep 1000")).await.unwrap() };
    let (refused, _) = tokio::join!(cri.start(&id), other);
    let refused = refused.unwrap_err();
    assert!(
        refused.code() == Code::DeadlineExceeded && refused.message().contains("dead/sub"),
        "{refused}"
    );
    assert!(begun.elapsed().as_secs() < 60);
    assert_eq!(cri.status(&id).await.unwrap().reason, "StartError");
    cri.remove_pod(&sandbox).await.unwrap();
    assert!(machine.command("umount").arg("-l").arg(&dead).status().unwrap().success());
    machine.assert_clean().await;
    drop(daemon);
}

/// An artifact as `oras push` makes it of files.
fn artifact(files: &[(Option<&str>, &[u8])]) -> Image {
    let config = b"{}".to_vec();
    let describe = |media_type: &str, blob: &[u8]| {
        json!({
            "mediaType": media_type,
            "digest": digest(blob),
            "size": blob.len(),
        })
    };
    let layers = files.iter().map(|(title, content)| {
        let mut layer = describe("application/octet-stream", content);
        if let Some(title) = title {
            layer["annotations"] = json!({ "org.opencontainers.image.title": title });
        }
        layer
    });
    let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type,
        "artifactType": "application/vnd.example.model",
        "config": describe("application/vnd.oci.empty.v1+json", &config),
        "layers": layers.collect::<Vec<_>>(),
    });
    let blobs = files.iter().map(|(_, content)| content.to_vec()).chain([config.clone()]).collect();
    Image { blobs, manifest: manifest.to_string().into_bytes(), media_type, id: digest(&config) }
}

#[tokio::test]
async fn files_of_an_artifact_are_mounted_as_those_of_an_image() {
    let (machine, daemon, cri, busybox) = ready().await;
    let registry = DockerRegistry::start(&machine).await;
    // One of the files is a tar, which is not unpacked.
    let tar = Layer::new().file("inside", b"x").bytes();
    let files = [
        (Some("model/weights.bin"), &b"weights"[..]),
        (Some("README"), b"read me"),
        (None, tar.as_slice()),
    ];
    let name = registry.push(&machine, "models/small", "1", &artifact(&files));
    let id = cri.pull(&name).await.unwrap();
    let other = registry.push(
        &machine,
        "models/other",
        "1",
        &artifact(&[(Some("README"), b"read me too")]),
    );
    assert_ne!(
        cri.pull(&other).await.unwrap(),
        id,
        "artifacts with the same empty config are not the same"
    );
    // An image that has the same tar as a layer, which is unpacked.
    let unpacked = registry.push(
        &machine,
        "unpacked",
        "1",
        &Image::new(&[(tar.clone(), tar.clone())], &json!({})),
    );
    cri.pull(&unpacked).await.unwrap();

    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let mounts = vec![
        image_mount(&name, "/whole", ""),
        image_mount(&name, "/weights", "model/weights.bin"),
        image_mount(&unpacked, "/tar", ""),
    ];
    let container =
        cri.run(&sandbox, with(container("c", &busybox, "sleep 1000"), mounts)).await.unwrap();
    let blob = &digest(&tar)["sha256:".len()..];
    let script = format!(
        "cat /weights /whole/model/weights.bin /whole/README /tar/inside; wc -c < /whole/{blob}"
    );
    assert_eq!(cri.sh(&container, &script).await, format!("weightsweightsread mex{}\n", tar.len()));

    daemon.kill();
    let _daemon = machine.start().await;
    let status = cri.image_status(&name).await.unwrap().unwrap();
    let by_digest = format!("127.0.0.1:5000/models/small@{}", digest(&artifact(&files).manifest));
    assert_eq!((status.id, status.repo_digests), (id, vec![by_digest]));
    for title in ["/etc/passwd", "../../x"] {
        let name = registry.push(&machine, "bad", "1", &artifact(&[(Some(title), b"x")]));
        let error = cri.pull(&name).await.unwrap_err();
        assert!(
            error.code() == Code::FailedPrecondition && error.message().contains(title),
            "{error}"
        );
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
