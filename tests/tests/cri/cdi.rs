//! Devices by name (CDI): what a CDI file adds to a container, and the hooks that run for it on the
//! host.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use berth_proto::v1;
use berth_tests::{Config, Cri, Machine, container, pod, ready};
use nix::sys::stat::{Mode, SFlag, major, makedev, minor, mknod};
use tonic::Code;

/// Stands in for NVIDIA's hook program: it records its arguments, and changes the container's root
/// as that one does.
const NVIDIA_CTK: &str = r#"#!/bin/sh
state=$(cat)
field() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }
bundle=$(echo "$state" | field bundle)
status=$(echo "$state" | field status)
root=$(field path <"$bundle/config.json")
echo "$2 $status ${FROM-} $(readlink /proc/self/ns/net)" >>"$DIR/said"
case $2 in
create-symlinks) ln -s libcuda.so.1 "$root/usr/lib/x86_64-linux-gnu/libcuda.so" ;;
update-ldcache) ls "$root/usr/lib/x86_64-linux-gnu" >"$root/etc/ld.so.cache" ;;
chmod) chmod "$4" "$root$6" ;;
fail) echo "no driver is loaded" >&2 && exit 3 ;;
hang) exec sleep 1000 ;;
esac
"#;

/// Installs the CDI file of a GPU and the files that it names on `machine`. Returns the number of
/// the one device that is real.
fn install(machine: &Machine) -> (u64, u64) {
    let dir = machine.dir.path().display().to_string();
    // The directory must be accessible to the root of a user namespace, which is nobody special
    // here.
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o711)).unwrap();
    fs::create_dir_all(machine.path("cdi")).unwrap();
    fs::create_dir_all(machine.path("dev")).unwrap();
    let node = |name: &str, number| {
        let mode = Mode::from_bits_truncate(0o644);
        mknod(&machine.path("dev").join(name), SFlag::S_IFCHR, mode, makedev(195, number)).unwrap();
    };
    node("nvidia0", 0);
    node("nvidiactl", 255);
    fs::write(machine.path("libcuda.so.580.65.06"), "the library").unwrap();
    let device = ["/dev/loop-control", "/dev/fuse"]
        .into_iter()
        .find(|path| fs::exists(path).unwrap())
        .expect("one of them");
    let spec =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("data/gpu.yaml")).unwrap();
    fs::write(
        machine.path("cdi/nvidia.yaml"),
        spec.replace("$DIR", &dir).replace("$DEVICE", device),
    )
    .unwrap();
    fs::write(machine.path("nvidia-ctk"), NVIDIA_CTK.replace("$DIR", &dir)).unwrap();
    fs::set_permissions(machine.path("nvidia-ctk"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(machine.path("said"), "").unwrap();
    fs::set_permissions(machine.path("said"), fs::Permissions::from_mode(0o666)).unwrap();
    let number = fs::metadata(device).unwrap().rdev();
    (major(number), minor(number))
}

fn with(mut config: v1::ContainerConfig, devices: &[&str]) -> v1::ContainerConfig {
    config.cdi_devices =
        devices.iter().map(|name| v1::CdiDevice { name: (*name).to_owned() }).collect();
    config
}

/// As `with`, by annotations, which device plugins use where the runtime has no field for CDI
/// devices.
fn annotated(mut config: v1::ContainerConfig, annotations: &[(&str, &str)]) -> v1::ContainerConfig {
    let owned = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    config.annotations.extend(owned);
    config
}

fn said(machine: &Machine) -> Vec<String> {
    fs::read_to_string(machine.path("said")).unwrap().lines().map(str::to_owned).collect()
}

async fn sandbox(machine: &Machine, cri: &Cri) -> String {
    cri.run_pod(pod(machine, "p")).await.unwrap()
}

#[tokio::test]
async fn a_named_gpu_brings_its_nodes_libraries_groups_and_hooks() {
    let (machine, _daemon, cri, image) = ready().await;
    let (major, minor) = install(&machine);
    let sandbox = sandbox(&machine, &cri).await;
    let mut config = with(container("c", &image, "sleep 1000"), &["nvidia.com/gpu=0"]);
    config.envs = vec![v1::KeyValue { key: "NVIDIA_VISIBLE_DEVICES".into(), value: "all".into() }];
    let security = config.security();
    security.readonly_rootfs = true;
    security.run_as_user = Some(v1::Int64Value { value: 1000 });
    let id = cri.run(&sandbox, config).await.unwrap();

    let nodes =
        cri.sh(&id, "stat -c '%n %t:%T %a %u' /dev/nvidia0 /dev/nvidiactl /dev/dri/card0").await;
    let expected = format!(
        "/dev/nvidia0 c3:0 644 1000\n/dev/nvidiactl c3:ff 644 1000\n/dev/dri/card0 \
            {major:x}:{minor:x} 660 1000\n"
    );
    assert_eq!(nodes, expected);
    // The container's user may open it for reading, which is all that the CDI file allows.
    cri.sh(&id, "exec 3</dev/dri/card0").await;
    let refused = cri.exec(&id, &["sh", "-c", "exec 3>>/dev/dri/card0"], 5).await.unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not permitted"), "{refused:?}");
    assert_eq!(
        cri.sh(&id, "echo $NVIDIA_VISIBLE_DEVICES; id -G").await,
        "void\n1000 44 109 2000\n"
    );
    let library = "/usr/lib/x86_64-linux-gnu/libcuda.so";
    assert_eq!(cri.sh(&id, &format!("cat {library}.580.65.06")).await, "the library");
    // The root filesystem is read-only now, and what the hooks wrote before is in it.
    let written =
        format!("readlink {library}; cat /etc/ld.so.cache; touch /x 2>/dev/null || echo read-only");
    assert_eq!(
        cri.sh(&id, &written).await,
        "libcuda.so.1\nlibcuda.so\nlibcuda.so.580.65.06\nread-only\n"
    );
    let state: serde_json::Value =
        serde_json::from_str(&cri.sh(&id, "cat /dev/shm/state").await).unwrap();
    assert!(state["id"] == id && state["pid"] == 1 && state["status"] == "created", "{state}");

    cri.stop(&id, 0).await.unwrap();
    let network = |line: &String| line.rsplit_once(' ').unwrap().1.to_owned();
    let calls = said(&machine);
    let steps: Vec<&str> = calls.iter().map(|line| line.rsplit_once(' ').unwrap().0).collect();
    assert_eq!(
        steps,
        [
            "prepare creating the file",
            "create-symlinks creating ",
            "update-ldcache creating ",
            "chmod creating ",
            "running running ",
            "gone stopped "
        ]
    );
    // createContainer hooks run in the container's namespaces and the others in the host's
    // (config.md of the OCI runtime specification).
    assert!(network(&calls[1]) == network(&calls[3]) && network(&calls[1]) != network(&calls[0]));
    assert!(network(&calls[0]) == network(&calls[4]) && network(&calls[0]) == network(&calls[5]));
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// What the kernel says of a process's privileges, without its pid.
const POWERS: &str = "grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs|Seccomp):' /proc/self/status";

#[tokio::test]
async fn a_hook_in_the_containers_root_can_do_no_more_than_its_program() {
    let (machine, _daemon, cri, image) = ready().await;
    fs::create_dir_all(machine.path("cdi")).unwrap();
    // The hook's program is a file of the image, so that the image decides what runs.
    let hook = format!(
        "{POWERS} >/dev/shm/hook; mount -t tmpfs x /tmp && echo mounted >>/dev/shm/hook; true"
    );
    let spec = serde_json::json!({
        "cdiVersion": "1.0.0", "kind": "test/hook", "devices": [{ "name": "d" }],
        "containerEdits": { "hooks": [{ "hookName": "startContainer", "path": "/bin/sh",
            "args": ["sh", "-c", hook] }] },
    });
    fs::write(machine.path("cdi/hook.json"), spec.to_string()).unwrap();
    let sandbox = sandbox(&machine, &cri).await;
    for (user, no_new_privs) in [(0, false), (0, true), (1000, false), (1000, true)] {
        let mut config = container(
            &format!("c{user}{no_new_privs}"),
            &image,
            &format!("{POWERS}; exec sleep 1000"),
        );
        let security = config.security();
        security.run_as_user = Some(v1::Int64Value { value: user });
        security.no_new_privs = no_new_privs;
        security.seccomp = Some(v1::SecurityProfile::default());
        let id = cri.run(&sandbox, with(config, &["test/hook=d"])).await.unwrap();
        let program = cri.sh(&id, POWERS).await;
        assert_eq!(
            cri.sh(&id, "cat /dev/shm/hook; rm /dev/shm/hook").await,
            program,
            "{user} {no_new_privs}"
        );
        assert!(
            program.contains("Seccomp:\t2") && program.contains(&format!("Uid:\t{user}\t")),
            "{program}"
        );
        cri.remove(&id).await.unwrap();
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn annotations_name_devices_too() {
    let (machine, _daemon, cri, image) = ready().await;
    fs::create_dir_all(machine.path("cdi")).unwrap();
    // The specification's own examples have octal modes as YAML 1.1 reads them.
    let spec = "cdiVersion: 0.6.0\nkind: vendor.com/net\ndevices:\n- name: eth\n  containerEdits:\n    env: [ETH=1]\n    \
        deviceNodes:\n    - path: /dev/eth\n      hostPath: /dev/null\n      fileMode: 0640\n      gid: 0\n- name: ib\n  \
        containerEdits:\n    env: [IB=1]\n    deviceNodes: [{path: /dev/ib, hostPath: /dev/zero, fileMode: 0o600}]\n";
    fs::write(machine.path("cdi/net.yaml"), spec).unwrap();
    let sandbox = sandbox(&machine, &cri).await;
    let config = with(container("c", &image, "exec sleep 1000"), &["vendor.com/net=ib"]);
    let annotations = [
        ("cdi.k8s.io/vfio_17", "vendor.com/net=eth,vendor.com/net=ib"),
        ("cdi.k8s.io/other", "vendor.com/net=eth"),
        ("example.com/cdi.k8s.io", "no device at all"),
    ];
    let id = cri.run(&sandbox, annotated(config, &annotations)).await.unwrap();
    let said = cri.sh(&id, "stat -c '%n %t:%T %a' /dev/eth /dev/ib; echo $ETH $IB").await;
    assert_eq!(said, "/dev/eth 1:3 640\n/dev/ib 1:5 600\n1 1\n");
    assert_eq!(cri.status(&id).await.unwrap().annotations.len(), 3, "they are shown as they came");
    for (value, what) in [
        ("vendor.com/net", "vendor.com/net"),
        ("vendor.com/net=eth, vendor.com/net=ib", "\" vendor.com/net=ib\""),
        ("", "\"\""),
        ("vendor.com/net=none", "no CDI device \"vendor.com/net=none\""),
    ] {
        let config = annotated(container("e", &image, "true"), &[("cdi.k8s.io/x", value)]);
        let refused = cri.create(&sandbox, config).await.unwrap_err();
        assert!(
            refused.code() == Code::InvalidArgument && refused.message().contains(what),
            "{value:?}: {refused}"
        );
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn hooks_reach_the_root_of_a_pod_with_its_own_users() {
    let (machine, _daemon, cri, image) = ready().await;
    install(&machine);
    let ids = vec![v1::IdMapping { host_id: 200_000, container_id: 0, length: 65_536 }];
    let users =
        v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids };
    let mut config = pod(&machine, "p");
    let options = |security: Option<&mut v1::NamespaceOption>| {
        security.unwrap().userns_options = Some(users.clone())
    };
    options(config.security().namespace_options.as_mut());
    let sandbox = cri.run_pod(config).await.unwrap();
    let mut config = with(container("c", &image, "sleep 1000"), &["nvidia.com/gpu=all"]);
    options(config.security().namespace_options.as_mut());
    let id = cri.run(&sandbox, config).await.unwrap();
    let written = cri.sh(&id, "cat /etc/ld.so.cache; stat -c %u /etc/ld.so.cache").await;
    assert_eq!(written, "libcuda.so\nlibcuda.so.580.65.06\n0\n");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_device_that_cannot_be_had_is_refused_and_a_failed_hook_leaves_nothing() {
    let (machine, _daemon, cri, image) = ready().await;
    install(&machine);
    let own = |name: &str, hook: &str| {
        let text = format!(
            r#"{{"cdiVersion":"1.0.0","kind":"test/{name}","devices":[{{"name":"d"}}],"containerEdits":{{"hooks":[
            {{"hookName":"poststop","path":"{0}/nvidia-ctk","args":["x","hook","gone"]}},{hook}]}}}}"#,
            machine.dir.path().display()
        );
        fs::write(
            machine.path(&format!("cdi/{name}.json")),
            text.replace("$DIR", &machine.dir.path().display().to_string()),
        )
        .unwrap();
    };
    own(
        "fail",
        r#"{"hookName":"createContainer","path":"$DIR/nvidia-ctk","args":["x","hook","fail"]}"#,
    );
    own(
        "slow",
        r#"{"hookName":"createRuntime","path":"$DIR/nvidia-ctk","args":["x","hook","hang"],"timeout":1}"#,
    );
    own("none", r#"{"hookName":"createContainer","path":"/no/such/program"}"#);
    own("when", r#"{"hookName":"sometimes","path":"/bin/true"}"#);
    let sandbox = sandbox(&machine, &cri).await;
    for (name, what) in [
        ("nvidia.com/gpu=7", "no CDI device \"nvidia.com/gpu=7\"; there is nvidia.com/gpu=0"),
        ("gpu", "vendor/class=name"),
        ("test/when=d", "sometimes"),
    ] {
        let refused =
            cri.create(&sandbox, with(container("e", &image, "true"), &[name])).await.unwrap_err();
        assert!(
            refused.code() == Code::InvalidArgument && refused.message().contains(what),
            "{refused}"
        );
    }
    for (name, what) in [
        ("test/fail=d", "exit status: 3: no driver is loaded"),
        ("test/slow=d", "no end within 1 s"),
        ("test/none=d", "/no/such/program"),
    ] {
        fs::write(machine.path("said"), "").unwrap();
        let id = cri.create(&sandbox, with(container("f", &image, "true"), &[name])).await.unwrap();
        let failed = cri.start(&id).await.unwrap_err();
        assert!(failed.message().contains("hook") && failed.message().contains(what), "{failed}");
        let status = cri.status(&id).await.unwrap();
        assert!(status.reason == "StartError" && status.message.contains(what), "{status:?}");
        assert!(said(&machine).last().unwrap().starts_with("gone stopped"), "{:?}", said(&machine));
        cri.remove(&id).await.unwrap();
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
