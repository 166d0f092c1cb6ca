//! Starts that fail: one clear error, the reason in the container's status, and nothing left
//! behind.

use std::{collections::HashMap, fs, path::Path};

use berth_proto::v1;
use berth_tests::{Config, Entry, Image, bind, busybox, container, pod, ready};
use serde_json::Value;
use tonic::Code;

#[tokio::test]
async fn what_cannot_be_executed_is_told_with_its_reason() {
    let (machine, _daemon, cri, _) = ready().await;
    let layer = busybox().entry(&Entry {
        name: "bin/garbage",
        mode: 0o755,
        content: b"\x7fELF is not enough",
        ..Entry::default()
    });
    let image = cri.pull_image(&machine, Image::simple(layer, &[])).await;
    let sandbox = cri.run_pod(pod(&machine, "fail")).await.unwrap();
    for (name, command, what) in [
        ("missing", "/no/such/program", "No such file"),
        ("bare", "no-such-program", "No such file"),
        ("plain", "/etc/passwd", "Permission denied"),
        ("directory", "/etc", "Is a directory"),
        ("garbage", "/bin/garbage", "Exec format error"),
    ] {
        let mut config = container(name, &image, "");
        config.command = vec![command.to_owned()];
        let id = cri.create(&sandbox, config).await.unwrap();
        let error = cri.start(&id).await.unwrap_err();
        assert!(
            error.code() == Code::InvalidArgument
                && error.message().contains(what)
                && error.message().contains(command),
            "{name}: {error}"
        );
        let status = cri.status(&id).await.unwrap();
        assert_eq!(
            (status.state(), status.exit_code, status.reason.as_str()),
            (v1::ContainerState::ContainerExited, 128, "StartError")
        );
        assert!(status.message.contains(what) && status.finished_at > 0, "{status:?}");
        assert!(machine.shims().is_empty());
        cri.remove(&id).await.unwrap();
    }
    let mut nothing = container("nothing", &image, "");
    nothing.command = vec![];
    let error = cri.create(&sandbox, nothing).await.unwrap_err();
    assert!(
        error.code() == Code::InvalidArgument && error.message().contains("no command"),
        "{error}"
    );
    let unknown =
        cri.create(&sandbox, container("unknown", "not/pulled", "true")).await.unwrap_err();
    assert!(
        unknown.code() == Code::NotFound && unknown.message().contains("not/pulled"),
        "{unknown}"
    );
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn requests_that_contradict_themselves_or_reach_out_are_refused() {
    let (machine, _daemon, cri, image) = ready().await;
    for (name, change) in [
        (
            "handler",
            &(|request: &mut v1::RunPodSandboxRequest| request.runtime_handler = "kata".into())
                as &dyn Fn(&mut v1::RunPodSandboxRequest),
        ),
        ("metadata", &|request| request.config.as_mut().unwrap().metadata = None),
        ("config", &|request| request.config = None),
        ("sysctl", &|request| {
            linux(request).sysctls = HashMap::from([("kernel.panic".into(), "1".into())])
        }),
        ("sysctl path", &|request| {
            linux(request).sysctls = HashMap::from([("net/../kernel/panic".into(), "1".into())])
        }),
        ("name", &|request| {
            request.config.as_mut().unwrap().metadata.as_mut().unwrap().name =
                "a;K8S_POD_UID=b".into()
        }),
        ("hostname", &|request| request.config.as_mut().unwrap().hostname = "x".repeat(65)),
        ("cgroup parent", &|request| linux(request).cgroup_parent = "..".into()),
        ("cgroup parent's way", &|request| linux(request).cgroup_parent = "/../../x".into()),
        ("cgroup parent with the pod's processes", &|request| {
            linux(request).cgroup_parent = "..".into();
            let security = linux(request).security_context.as_mut().unwrap();
            security.namespace_options.as_mut().unwrap().pid = v1::NamespaceMode::Pod.into();
        }),
        ("NUL", &|request| linux(request).cgroup_parent = "a\0b".into()),
    ] {
        let mut request =
            v1::RunPodSandboxRequest { config: Some(pod(&machine, "p")), ..Default::default() };
        change(&mut request);
        let error = cri.runtime.clone().run_pod_sandbox(request).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{name}: {error}");
    }
    assert!(cri.pods(v1::PodSandboxFilter::default()).await.is_empty());
    // Only the kernel knows which sysctls there are, so this fails late, and everything before it
    // is undone.
    let mut config = pod(&machine, "late");
    config.linux.as_mut().unwrap().sysctls =
        HashMap::from([("net.ipv4.no_such_thing".into(), "1".into())]);
    let late = cri.run_pod(config).await.unwrap_err();
    assert!(late.message().contains("no_such_thing"), "{late}");
    machine.assert_clean().await;

    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    for (name, change) in [
        (
            "log path",
            &(|config: &mut v1::ContainerConfig| config.log_path = "../../escape.log".into())
                as &dyn Fn(&mut v1::ContainerConfig),
        ),
        ("environment", &|config| {
            config.envs = vec![v1::KeyValue { key: "A=B".into(), value: vec![] }]
        }),
        ("image", &|config| config.image = None),
        ("mount", &|config| {
            config.mounts = vec![v1::Mount { container_path: "/x".into(), ..Default::default() }]
        }),
        ("NUL", &|config| config.command = vec!["a\0b".into()]),
    ] {
        let mut config = container("c", &image, "true");
        change(&mut config);
        assert_eq!(
            cri.create(&sandbox, config).await.unwrap_err().code(),
            Code::InvalidArgument,
            "{name}"
        );
    }
    cri.stop_pod(&sandbox).await.unwrap();
    assert_eq!(
        cri.create(&sandbox, container("c", &image, "true")).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut record = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut record);
    fs::write(path, record.to_string()).unwrap();
}

#[tokio::test]
async fn a_pod_is_removed_whatever_its_record_says_of_a_cgroup() {
    let (machine, daemon, cri, image) = ready().await;
    let plain = cri.run_pod(pod(&machine, "plain")).await.unwrap();
    let mut config = pod(&machine, "shared");
    let shared = |options: Option<&mut v1::NamespaceOption>| {
        options.unwrap().pid = v1::NamespaceMode::Pod.into()
    };
    shared(config.security().namespace_options.as_mut());
    let sandbox = cri.run_pod(config).await.unwrap();
    let mut config = container("c", &image, "exec sleep 1000");
    shared(config.security().namespace_options.as_mut());
    cri.run(&sandbox, config).await.unwrap();
    daemon.kill();
    let directory = |id: &str| machine.path(&format!("root/sandboxes/{id}"));
    edit(&directory(&sandbox).join("meta.json"), |record| {
        record["config"]["cgroup_parent"] = "..".into()
    });
    // A record as an older berthd left it when a run failed late: with a pause process that never
    // existed, and without a cgroup.
    fs::create_dir(directory(&plain).join("pause")).unwrap();
    edit(&directory(&plain).join("meta.json"), |record| {
        record["config"]["cgroup_parent"] = "..".into();
        record["config"]["namespaces"]["pid"] = "Pod".into();
        record.as_object_mut().unwrap().remove("pause_cgroup");
    });
    let daemon = machine.start().await;
    let cri = daemon.cri();
    for id in [sandbox, plain] {
        cri.stop_pod(&id).await.unwrap();
        cri.remove_pod(&id).await.unwrap();
    }
    machine.assert_clean().await;
}

fn linux(request: &mut v1::RunPodSandboxRequest) -> &mut v1::LinuxPodSandboxConfig {
    request.config.as_mut().unwrap().linux.as_mut().unwrap()
}

#[tokio::test]
async fn symbolic_links_of_an_image_lead_nowhere_outside() {
    let (machine, _daemon, cri, _) = ready().await;
    let outside = machine.path("outside");
    fs::create_dir_all(&outside).unwrap();
    let target = outside.display().to_string();
    // The image's links point at the host's paths, and mount targets and the working directory lead
    // through them.
    let layer = busybox()
        .symlink("data", &target)
        .symlink("up", "../../../../../../../../")
        .symlink("mnt", "/up");
    let image = cri.pull_image(&machine, Image::simple(layer, &[])).await;
    fs::create_dir_all(machine.path("volume")).unwrap();
    fs::write(machine.path("volume/file"), "v").unwrap();
    let sandbox = cri.run_pod(pod(&machine, "links")).await.unwrap();
    let mut config = container("c", &image, "exec sleep 1000");
    let volume = machine.path("volume");
    config.mounts = vec![bind(&volume, "/data/in"), bind(&volume, "/mnt/deep")];
    config.working_dir = "/data/work".into();
    let id = cri.run(&sandbox, config).await.unwrap();
    assert_eq!(
        cri.sh(&id, "pwd; cat /data/in/file /deep/file").await,
        format!("{target}/work\nvv")
    );
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "nothing was made on the host");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
