//! Limits and devices: what the cgroup of a container is set to.

use std::{collections::HashMap, fs, os::unix::fs::MetadataExt};

use berth_proto::v1;
use berth_tests::{Capability, Config, Cri, container, pod, ready};
use tonic::Code;

#[tokio::test]
async fn limits_are_in_the_cgroup_and_out_of_memory_is_told() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "limits")).await.unwrap();
    let mut config = container("c", &image, "exec sleep 1000");
    config.linux.as_mut().unwrap().resources = Some(v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: 500,
        unified: HashMap::from([("pids.max".to_owned(), "7".to_owned())]),
        ..Default::default()
    });
    let id = cri.run(&sandbox, config).await.unwrap();
    let read =
        |controller: &str, v1: &str, v2: &str| machine.cgroup_file(&id, (controller, v1), v2);
    assert_eq!(read("memory", "memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
    assert_eq!(read("pids", "pids.max", "pids.max"), "7");
    assert!(
        ["50000", "50000 100000"].contains(&read("cpu", "cpu.cfs_quota_us", "cpu.max").as_str())
    );
    assert!(["512", "59"].contains(&read("cpu", "cpu.shares", "cpu.weight").as_str()));
    assert_eq!(cri.sh(&id, "cat /proc/1/oom_score_adj").await.trim(), "500");
    // A fork above the limit is refused, and the container goes on.
    let many = cri
        .exec(&id, &["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done"], 10)
        .await
        .unwrap();
    assert!(String::from_utf8_lossy(&many.stderr).contains("fork"), "{many:?}");

    let mut config = container("hungry", &image, "x=$(yes | head -c 200000000); sleep 1000");
    config.linux.as_mut().unwrap().resources =
        Some(v1::LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() });
    let hungry = cri.run(&sandbox, config).await.unwrap();
    let exited = cri.exited(&hungry).await;
    assert_eq!((exited.reason.as_str(), exited.exit_code), ("OOMKilled", 137));
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn devices_are_there_with_their_permissions_and_no_others() {
    let (machine, _daemon, cri, image) = ready().await;
    let mut config = pod(&machine, "devices");
    config.security().privileged = true;
    let sandbox = cri.run_pod(config).await.unwrap();
    let device = |host: &str, inside: &str, permissions: &str| v1::Device {
        host_path: host.into(),
        container_path: inside.into(),
        permissions: permissions.into(),
    };
    // A device that no container has, and another name for one that every container has.
    let host = ["/dev/loop-control", "/dev/fuse"]
        .into_iter()
        .find(|path| fs::exists(path).unwrap())
        .expect("one of them");
    let number = fs::metadata(host).unwrap().rdev();
    let major = nix::sys::stat::major(number);
    let minor = nix::sys::stat::minor(number);
    let mut config = container("c", &image, "exec sleep 1000");
    config.devices =
        vec![device(host, "/dev/some/where", "r"), device("/dev/zero", "/dev/nothing", "rw")];
    let id = cri.run(&sandbox, config).await.unwrap();
    let expected = format!("2\n{major:x}:{minor:x}\n");
    assert_eq!(
        cri.sh(&id, "head -c 2 /dev/nothing | wc -c; stat -c '%t:%T' /dev/some/where").await,
        expected
    );
    cri.sh(&id, "exec 3< /dev/some/where").await;
    // The device filter works by major and minor number, so a device that was not asked for is
    // refused under any name.
    let sneak = format!(
        "mknod /tmp/x c {major} {minor} && ! sh -c 'exec 3<>/tmp/x' 2>/dev/null && echo refused"
    );
    assert_eq!(cri.sh(&id, &sneak).await, "refused\n", "for reading only");
    let plain = cri.run(&sandbox, container("plain", &image, "exec sleep 1000")).await.unwrap();
    let sneak = format!(
        "mknod /tmp/x c {major} {minor} && ! sh -c 'exec 3</tmp/x' 2>/dev/null && echo refused"
    );
    assert_eq!(cri.sh(&plain, &sneak).await, "refused\n");
    // The host's console (5:1) has a number beside those of every container's terminals (5:0, 5:2).
    let console = "mknod /tmp/console c 5 1; exec 3<>/tmp/console";
    let refused = cri.exec(&plain, &["sh", "-c", console], 10).await.unwrap();
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.exit_code != 0 && told.contains("Operation not permitted"), "{told:?}");
    assert_eq!(
        cri.sh(
            &plain,
            "exec 3<>/dev/ptmx; exec 4<>/dev/null 5</dev/zero 6</dev/urandom; echo opened"
        )
        .await,
        "opened\n"
    );
    let mut config = container("privileged", &image, "exec sleep 1000");
    config.security().privileged = true;
    let privileged = cri.run(&sandbox, config).await.unwrap();
    cri.sh(&privileged, &format!("exec 3<> {host}")).await;
    for (host, permissions) in [("/no/such/device", "r"), ("/etc/passwd", "r"), ("/dev/null", "rx")]
    {
        let mut config = container("refused", &image, "true");
        config.devices = vec![device(host, "/dev/x", permissions)];
        let error = cri.create(&sandbox, config).await.unwrap_err();
        assert!(error.code() == Code::InvalidArgument && error.message().contains(host), "{error}");
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn limits_are_updated_all_or_none() {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "update")).await.unwrap();
    let mut config = container("c", &image, "exec sleep 1000");
    let limits = v1::LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        cpu_period: 100_000,
        cpu_quota: 20_000,
        ..Default::default()
    };
    config.linux.as_mut().unwrap().resources = Some(limits);
    let id = cri.create(&sandbox, config).await.unwrap();
    let update = async |linux| {
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        cri.runtime.clone().update_container_resources(request).await.map(drop)
    };
    let shown = async || cri.status(&id).await.unwrap().resources.unwrap().linux.unwrap();
    let limit = || {
        machine
            .cgroup_file(&id, ("memory", "memory.limit_in_bytes"), "memory.max")
            .parse::<i64>()
            .unwrap()
    };
    // A created container: the update says what it will start with.
    update(v1::LinuxContainerResources { memory_limit_in_bytes: 48 << 20, ..Default::default() })
        .await
        .unwrap();
    cri.start(&id).await.unwrap();
    assert_eq!(
        (limit(), shown().await.memory_limit_in_bytes, shown().await.cpu_quota),
        (48 << 20, 48 << 20, 20_000)
    );
    // A running container: limits go up and down, and those that are not named stay.
    for mebibytes in [96, 32] {
        update(v1::LinuxContainerResources {
            memory_limit_in_bytes: mebibytes << 20,
            ..Default::default()
        })
        .await
        .unwrap();
        assert_eq!(
            (limit(), shown().await.memory_limit_in_bytes),
            (mebibytes << 20, mebibytes << 20)
        );
    }
    // When the kernel refuses one part, nothing is changed.
    let refused = v1::LinuxContainerResources {
        memory_limit_in_bytes: 80 << 20,
        cpu_shares: 77,
        unified: [("memory.high".to_owned(), "nonsense".to_owned())].into(),
        ..Default::default()
    };
    let error = update(refused).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert_eq!(
        (limit(), shown().await.memory_limit_in_bytes, shown().await.cpu_shares),
        (32 << 20, 32 << 20, 0)
    );
    daemon.kill();
    let _daemon = machine.start().await;
    assert_eq!(shown().await.memory_limit_in_bytes, 32 << 20);
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_pods_size_is_what_the_kubelet_said_last() {
    let (machine, daemon, cri, _) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let sized = |cpu_quota| Some(v1::LinuxContainerResources { cpu_quota, ..Default::default() });
    let update = async |cri: &Cri, overhead, resources| {
        let pod_sandbox_id = sandbox.clone();
        let request = v1::UpdatePodSandboxResourcesRequest { pod_sandbox_id, overhead, resources };
        cri.runtime.clone().update_pod_sandbox_resources(request).await.map(drop)
    };
    let shown = async |cri: &Cri| {
        let request =
            v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: true };
        let info = cri.runtime.clone().pod_sandbox_status(request).await.unwrap().into_inner().info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
        (info["overhead"]["cpu_quota"].as_i64(), info["resources"]["cpu_quota"].as_i64())
    };
    assert_eq!(shown(&cri).await, (None, None));
    update(&cri, sized(1000), sized(20_000)).await.unwrap();
    update(&cri, None, sized(30_000)).await.unwrap();
    assert_eq!(shown(&cri).await, (Some(1000), Some(30_000)));
    daemon.kill();
    let daemon = machine.start().await;
    assert_eq!(shown(&daemon.cri()).await, (Some(1000), Some(30_000)));
    let request = v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: "none".into(),
        ..Default::default()
    };
    let unknown = daemon.cri().runtime.update_pod_sandbox_resources(request).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    daemon.cri().remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn processors_are_given_or_their_lack_is_told() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let mut config = container("c", &image, "exec sleep 1000");
    let limits = v1::LinuxContainerResources {
        cpuset_cpus: "0".into(),
        cpuset_mems: "0".into(),
        ..Default::default()
    };
    config.linux.as_mut().unwrap().resources = Some(limits);
    let started = cri.run(&sandbox, config).await;
    if !Capability::Cpusets.is_there() {
        let refused = started.unwrap_err();
        assert!(refused.message().contains("no cpuset controller"), "{refused}");
    } else {
        let id = started.unwrap();
        assert_eq!(machine.cgroup_file(&id, ("cpuset", "cpuset.cpus"), "cpuset.cpus"), "0");
        assert_eq!(
            cri.sh(&id, "grep Cpus_allowed_list /proc/1/status").await,
            "Cpus_allowed_list:\t0\n"
        );
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
