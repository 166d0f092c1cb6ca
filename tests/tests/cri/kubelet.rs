//! What the kubelet sends and expects beyond the text of CRI's api.proto.

use std::{fs, path::Path};

use berth_proto::v1;
use berth_tests::{
    Config, Daemon, DockerRegistry, Image, Layer, Machine, bind, busybox, container, eventually,
    gzip, image_mount, pod, ready,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tonic::Code;

/// An image as kubelets since 1.36 name it: by its id, together with what the user wrote.
fn by_id(name: &str, id: &str, written: &str) -> v1::ContainerConfig {
    let image = v1::ImageSpec {
        image: id.to_owned(),
        user_specified_image: written.to_owned(),
        ..Default::default()
    };
    v1::ContainerConfig { image: Some(image), ..container(name, id, "exec sleep 1000") }
}

#[tokio::test]
async fn an_image_that_was_asked_for_by_id_is_shown_by_its_name() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let registry = DockerRegistry::start(&machine).await;
    let tag = registry.push(&machine, "busybox", "1", &Image::busybox());
    cri.pull(&tag).await.unwrap();
    let image = cri.image_status(&tag).await.unwrap().unwrap();
    let digest = image.repo_digests[0].clone();
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let mut shown = Vec::new();
    for (index, (asked, written, expected)) in [
        (&image.id, tag.as_str(), &tag),
        (&image.id, "", &tag),
        // The user's text is not a name of this image here: on another node, or before a tag was
        // moved, it was.
        (&image.id, "elsewhere.io/other:2", &tag),
        (&image.id, digest.as_str(), &digest),
        (&tag, "", &tag),
    ]
    .into_iter()
    .enumerate()
    {
        let id = cri.create(&sandbox, by_id(&format!("c{index}"), asked, written)).await.unwrap();
        let status = cri.status(&id).await.unwrap();
        let spec = status.image.clone().unwrap();
        assert_eq!(
            (&spec.image, spec.user_specified_image.as_str()),
            (expected, written),
            "{status:?}"
        );
        assert_eq!((&status.image_id, &status.image_ref), (&image.id, &digest));
        // Lists show the image that was asked for, by which clients find the image itself.
        let listed = cri
            .containers(v1::ContainerFilter { id: id.clone(), ..Default::default() })
            .await
            .remove(0);
        assert_eq!((&listed.image.unwrap().image, &listed.image_id), (asked, &image.id));
        shown.push((id, expected.clone()));
    }
    // The tag is moved to another image, and the name is removed: the running container still says
    // what it was made of.
    registry.push(&machine, "busybox", "1", &Image::simple(busybox().file("other", b"x"), &[]));
    assert_ne!(cri.pull(&tag).await.unwrap(), image.id);
    cri.remove_image(&image.id).await.unwrap();
    daemon.kill();
    let daemon = machine.start().await;
    for (id, expected) in &shown {
        assert_eq!(&daemon.cri().status(id).await.unwrap().image.unwrap().image, expected);
    }
    daemon.cri().remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn the_nodes_name_is_in_the_environment_of_pods_on_its_network() {
    let (machine, _daemon, cri, image) = ready().await;
    let node = fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned();
    let mut on_host = v1::PodSandboxConfig { hostname: String::new(), ..pod(&machine, "host") };
    let security = on_host.security();
    security.namespace_options.as_mut().unwrap().network = v1::NamespaceMode::Node.into();
    // A pod that has a network of its own and no hostname has the node's hostname.
    let nameless = v1::PodSandboxConfig { hostname: String::new(), ..pod(&machine, "nameless") };
    for (config, expected) in
        [(on_host, node.as_str()), (nameless, &node), (pod(&machine, "named"), "named")]
    {
        let sandbox = cri.run_pod(config).await.unwrap();
        let id = cri.run(&sandbox, container("c", &image, "exec sleep 1000")).await.unwrap();
        let said = cri.sh(&id, "echo $HOSTNAME; hostname; cat /etc/hostname").await;
        assert_eq!(said, format!("{expected}\n").repeat(3));
        let mut own = container("own", &image, "exec sleep 1000");
        own.envs = vec![v1::KeyValue { key: "HOSTNAME".into(), value: b"mine".to_vec() }];
        let id = cri.run(&sandbox, own).await.unwrap();
        assert_eq!(cri.sh(&id, "echo $HOSTNAME").await, "mine\n");
        cri.remove_pod(&sandbox).await.unwrap();
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_sub_path_without_an_image_means_nothing() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    fs::create_dir_all(machine.path("volume/sub")).unwrap();
    fs::write(machine.path("volume/sub/file"), "of the volume").unwrap();
    let mut config = container("c", &image, "exec sleep 1000");
    // The kubelet has joined the sub path to host_path already, and sends `image_sub_path`
    // nevertheless.
    config.mounts =
        vec![v1::Mount { image_sub_path: "sub".into(), ..bind(&machine.path("volume/sub"), "/v") }];
    let id = cri.run(&sandbox, config).await.unwrap();
    assert_eq!(cri.sh(&id, "cat /v/file").await, "of the volume");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn the_runtime_spec_shows_where_volumes_and_images_are_on_the_host() {
    let (machine, _daemon, cri, _) = ready().await;
    let base = busybox().file("of-base", b"base").bytes();
    let top = Layer::new().directory("data", 0o755).file("data/file", b"from the image").bytes();
    let layers = [(base.clone(), gzip(&base)), (top.clone(), gzip(&top))];
    let volumes = json!({ "Volumes": { "/data": {}, "/more": {} } });
    let image = cri.pull_image(&machine, Image::new(&layers, &volumes)).await;
    let model = Layer::new().directory("model", 0o755).file("model/weights", b"42");
    let model = cri.pull_image(&machine, Image::simple(model, &[])).await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let mut config = container("c", &image, "exec sleep 1000");
    config.mounts = vec![
        image_mount(&model, "/model", ""),
        image_mount(&model, "/part", "model"),
        image_mount(&image, "/two", ""),
    ];
    let id = cri.run(&sandbox, config).await.unwrap();
    let info = cri.info(&id).await;
    let mounts = info["runtimeSpec"]["mounts"].as_array().unwrap();
    let at = |target: &str| mounts.iter().find(|mount| mount["destination"] == target).unwrap();
    let source = |target: &str| Path::new(at(target)["source"].as_str().unwrap()).to_owned();
    assert_eq!(fs::read_to_string(source("/data").join("file")).unwrap(), "from the image");
    assert!(source("/more").is_dir() && source("/more") != source("/data"));
    assert_eq!(fs::read_to_string(source("/model").join("model/weights")).unwrap(), "42");
    assert_eq!(fs::read_to_string(source("/part").join("weights")).unwrap(), "42");
    // The files of two layers are in no single directory, so the mount is an overlay of both, the
    // topmost layer first.
    let two = at("/two");
    let lower = two["options"].as_array().unwrap().iter().filter_map(Value::as_str);
    let lower: Vec<&str> = lower.filter_map(|option| option.strip_prefix("lowerdir=")).collect();
    let lower: Vec<&str> = lower[0].split(':').collect();
    assert!(two["type"] == "overlay" && lower.len() == 2, "{two}");
    assert!(fs::exists(Path::new(lower[0]).join("data/file")).unwrap());
    assert!(fs::exists(Path::new(lower[1]).join("of-base")).unwrap());
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// How many execs the shim was told of and has not answered: their requests are memfds of the
/// daemon.
fn requests(daemon: &Daemon) -> usize {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().flatten();
    let is_request = |path: &Path| {
        fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:exec"))
    };
    descriptors.filter(|entry| is_request(&entry.path())).count()
}

#[tokio::test]
async fn an_exec_that_races_the_end_of_its_container_finds_it_not_running() {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    // The shim is stopped while the container ends and the exec arrives, so that it reads of the
    // exec first.
    for round in 0..20 {
        let id = cri
            .run(&sandbox, container(&format!("c{round}"), &image, "exec sleep 1000"))
            .await
            .unwrap();
        // The first exec asks the shim for its version, and the next ones only for the command.
        cri.sh(&id, "true").await;
        let first = Pid::from_raw(cri.info(&id).await["pid"].as_u64().unwrap() as i32);
        let (shim, _) =
            machine.shims().into_iter().find(|(_, command)| command.contains(&id)).unwrap();
        kill(Pid::from_raw(shim), Signal::SIGSTOP).unwrap();
        kill(first, Signal::SIGKILL).unwrap();
        let path = format!("/proc/{first}/stat");
        eventually("the first process' end", async || {
            fs::read_to_string(&path).unwrap().contains(") Z")
        })
        .await;
        let (exec, ()) = tokio::join!(cri.exec(&id, &["true"], 10), async {
            eventually("the exec's request", async || requests(&daemon) > 0).await;
            kill(Pid::from_raw(shim), Signal::SIGCONT).unwrap();
        });
        let refused = exec.unwrap_err();
        assert!(
            refused.code() == Code::FailedPrecondition && refused.message().contains(&id),
            "{refused}"
        );
        assert_eq!(cri.exited(&id).await.exit_code, 137);
        assert_eq!(cri.exec(&id, &["true"], 5).await.unwrap_err().code(), Code::FailedPrecondition);
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn execs_at_random_moments_around_the_end_are_refused_as_such_or_killed() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    for round in 0..20 {
        let id = cri
            .run(&sandbox, container(&format!("c{round}"), &image, "exec sleep 1000"))
            .await
            .unwrap();
        let execs = futures_util::future::join_all((0..4).map(|_| async {
            loop {
                match cri.exec(&id, &["true"], 10).await {
                    Ok(output) => assert!([0, 137].contains(&output.exit_code), "{output:?}"),
                    Err(refused) => break refused,
                }
            }
        }));
        let (refused, stopped) = tokio::join!(execs, cri.stop(&id, 0));
        stopped.unwrap();
        assert!(
            refused.iter().all(|error| error.code() == Code::FailedPrecondition),
            "{refused:?}"
        );
        cri.remove(&id).await.unwrap();
        assert_eq!(cri.exec(&id, &["true"], 5).await.unwrap_err().code(), Code::NotFound);
    }
    // A program that cannot be executed is still the request's fault.
    let id = cri.run(&sandbox, container("c", &image, "exec sleep 1000")).await.unwrap();
    let wrong = cri.exec(&id, &["/no/such/program"], 5).await.unwrap_err();
    assert!(
        wrong.code() == Code::InvalidArgument && wrong.message().contains("No such file"),
        "{wrong}"
    );
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
