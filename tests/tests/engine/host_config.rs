//! What a container may use of the machine, by the options of `docker run` and `docker update`: seen
//! from inside, and in the files of its cgroup.

use std::path::Path;

use berth_tests::{Capability, Engine, Machine, has_unified_cgroups, skip_without};
use serde_json::{Value, json};

use crate::{fail, ready, run, succeed};

#[tokio::test]
async fn processes_get_an_init_limits_groups_and_a_score() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, image) = ready().await;
    let options = [
        "--init",
        "--ulimit=nofile=77:99",
        "--ulimit=core=-1",
        "--oom-score-adj=300",
        "--user=web",
        "--group-add=extra",
        "--group-add=4321",
        "--sysctl=net.core.somaxconn=77",
    ];
    let script = "cat /proc/1/comm; ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj
        id -G; cat /proc/sys/net/core/somaxconn";
    assert_eq!(
        run(&machine, &options, &image, script),
        "docker-init\n77\n99\nunlimited\n300\n1000 2000 4321\n77"
    );
    // The init ends as its program does, of which it is not the first process.
    let ended = machine.docker(&["run", "--rm", "--init", &image, "sh", "-c", "exit $$"]);
    assert_eq!(ended.status.code(), Some(2));
    for (option, expected) in [
        ("--ulimit=nope=1", "invalid ulimit type: nope"),
        ("--group-add=nope", "nope"),
        ("--sysctl=kernel.panic=1", "kernel.panic"),
    ] {
        let error = fail(&machine, &["run", "--rm", option, &image, "true"]);
        assert!(error.contains(expected), "{error}");
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn file_systems_in_memory_have_their_sizes_modes_and_options() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, image) = ready().await;
    let options = [
        "--read-only",
        "--shm-size=1m",
        "--tmpfs=/t:size=64k,mode=700,exec",
        "--tmpfs=/root",
        "--mount=type=tmpfs,dst=/m,tmpfs-size=65536,tmpfs-mode=1770",
    ];
    let script = "touch /x 2>&1; for at in /dev/shm /t /root /m; do
        touch $at/x; stat -c %a $at; grep \" $at \" /proc/mounts; done";
    let shown = run(&machine, &options, &image, script);
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].contains("Read-only file system"), "{shown}");
    let modes: Vec<&str> = lines[1..].iter().step_by(2).copied().collect();
    // A directory of the image keeps its mode.
    assert_eq!(modes, ["1777", "700", "700", "1770"], "{shown}");
    assert!(lines[2].contains("size=1024k"), "{shown}");
    assert!(lines[4].contains("nosuid,nodev") && lines[4].contains("size=64k"), "{shown}");
    assert!(!lines[4].contains("noexec") && lines[6].contains("noexec"), "{shown}");
    assert!(lines[8].contains("size=64k"), "{shown}");
    assert!(lines[4].starts_with("tmpfs /t tmpfs ") && lines[2].starts_with("shm "), "{shown}");
    let sources = run(&machine, &[], &image, "cut -d ' ' -f 1 /proc/mounts | sort -u");
    assert!(!sources.lines().any(|source| source == "none"), "{sources}");
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_bind_with_the_daemons_directory_in_it_follows_the_host() {
    let (machine, _daemon, engine, image) = ready().await;
    let own = machine.path("");
    let own = own.to_str().unwrap().trim_end_matches('/');
    let beside = machine.path("beside");
    std::fs::create_dir_all(&beside).unwrap();
    let beside = beside.to_str().unwrap();
    let create = |binds: Value| {
        let body = json!({
            "Image": image, "Cmd": ["sleep", "1000"], "HostConfig": { "Binds": binds },
        });
        engine.request("POST", "/containers/create?name=c1", Some(body))
    };
    for (source, mode, expected) in [
        ("/", "", "rslave"),
        (own, "", "rslave"),
        (own, ":rshared", "rshared"),
        (beside, "", "rprivate"),
        (beside, ":slave", "slave"),
    ] {
        let (status, answer) = create(json!([format!("{source}:/h{mode}")])).await;
        assert_eq!(status, 201, "{answer}");
        let shown = engine.inspect("c1").await["Mounts"][0]["Propagation"].clone();
        assert_eq!(shown, expected, "{source}{mode}");
        engine.remove("c1").await;
    }
    let (status, answer) = create(json!([format!("{own}:/h:private")])).await;
    let message = answer["message"].as_str().unwrap();
    let expected =
        "invalid mount config: must use either propagation mode \"rslave\" or \"rshared\"";
    assert!(status == 400 && message.starts_with(expected), "{answer}");
    // What is unmounted on the host is unmounted in the container.
    let mounted = machine.path("mounted");
    std::fs::create_dir_all(&mounted).unwrap();
    let mounted = mounted.to_str().unwrap();
    machine.output("mount", &["--make-rshared", "/"]);
    machine.output("mount", &["-t", "tmpfs", "tmpfs", mounted]);
    create(json!([format!("{own}:/h")])).await;
    engine.start("c1").await;
    let pid = engine.inspect("c1").await["State"]["Pid"].to_string();
    let has_it = || {
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
        mounts.lines().any(|line| line.contains(" /h/mounted "))
    };
    assert!(has_it());
    machine.output("umount", &[mounted]);
    assert!(!has_it());
    engine.remove("c1").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn mounts_may_leave_out_a_part_of_their_source() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, image) = ready().await;
    let source = machine.path("source");
    let below = source.join("below");
    std::fs::create_dir_all(&below).unwrap();
    machine.output("mount", &["-t", "tmpfs", "tmpfs", below.to_str().unwrap()]);
    machine.output("touch", &[below.join("there").to_str().unwrap()]);
    let mount = |more: &str| format!("--mount=type=bind,src={},dst=/s{more}", source.display());
    assert_eq!(run(&machine, &[&mount("")], &image, "ls /s/below"), "there");
    let single = mount(",bind-recursive=disabled");
    assert_eq!(run(&machine, &[&single], &image, "ls /s/below"), "");
    let readonly = mount(",readonly");
    let error = run(&machine, &[&readonly], &image, "touch /s/below/x 2>&1; true");
    assert!(error.contains("Read-only file system"), "{error}");
    machine.output("umount", &[below.to_str().unwrap()]);
    let part = format!("--mount=type=image,src={image},dst=/i,image-subpath=etc");
    assert_eq!(run(&machine, &[&part], &image, "ls /i"), "group\npasswd");
    machine.assert_clean().await;
}

/// The content of a file of a container's cgroup: by controller and file on v1, by file on v2.
fn limit(machine: &Machine, engine: &Value, v1: (&str, &str), v2: &str) -> String {
    machine.cgroup_file(engine["Id"].as_str().unwrap(), v1, v2)
}

#[tokio::test]
async fn limits_are_those_of_its_cgroup_and_an_update_reaches_them() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let parent = format!("--cgroup-parent={}", machine.cgroup_parent);
    let options = [
        "run",
        "-d",
        "--name=c1",
        &parent,
        "--memory=64m",
        "--memory-swap=96m",
        "--memory-reservation=32m",
        "--pids-limit=50",
        "--cpus=0.5",
        "--cpu-shares=512",
        &image,
        "sleep",
        "1000",
    ];
    succeed(&machine, &options);
    let of = engine.inspect("c1").await;
    let swap = |v1: &str, v2: &str| {
        // Not every kernel with cgroup v2 counts swap.
        if of["HostConfig"]["MemorySwap"] != -1 {
            let is =
                limit(&machine, &of, ("memory", "memory.memsw.limit_in_bytes"), "memory.swap.max");
            assert_eq!(is, if has_unified_cgroups() { v2 } else { v1 });
        }
    };
    let limits = || {
        [
            (("memory", "memory.limit_in_bytes"), "memory.max"),
            (("memory", "memory.soft_limit_in_bytes"), "memory.low"),
            (("pids", "pids.max"), "pids.max"),
            (("cpu", "cpu.cfs_quota_us"), "cpu.max"),
            (("cpu", "cpu.shares"), "cpu.weight"),
        ]
        .map(|(v1, v2)| limit(&machine, &of, v1, v2))
    };
    let (quota, weight) =
        if has_unified_cgroups() { ("50000 100000", "59") } else { ("50000", "512") };
    assert_eq!(limits(), ["67108864", "33554432", "50", quota, weight].map(str::to_owned));
    swap("100663296", "33554432");
    let options = [
        "update",
        "--memory=128m",
        "--memory-swap=128m",
        "--memory-reservation=48m",
        "--pids-limit=-1",
        "--cpus=0.25",
        "--cpu-shares=1024",
        "c1",
    ];
    succeed(&machine, &options);
    let (quota, weight) =
        if has_unified_cgroups() { ("25000 100000", "100") } else { ("25000", "1024") };
    assert_eq!(limits(), ["134217728", "50331648", "max", quota, weight].map(str::to_owned));
    swap("134217728", "0");
    // The next run has them, too.
    succeed(&machine, &["restart", "-t0", "c1"]);
    assert_eq!(limits()[..2], ["134217728", "50331648"].map(str::to_owned));
    swap("134217728", "0");
    let shown = engine.inspect("c1").await["HostConfig"].clone();
    assert_eq!((&shown["Memory"], &shown["PidsLimit"]), (&json!(134_217_728), &Value::Null));
    engine.remove("c1").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_limit_that_the_kernel_refuses_fails_the_update_and_changes_nothing() {
    let (machine, _daemon, engine, image) = ready().await;
    let of = sleeping(&machine, &engine, &image, json!({ "PidsLimit": 50 })).await;
    let body = json!({ "PidsLimit": 9_000_000_000_000_i64 });
    let (status, answer) = engine.request("POST", "/containers/c1/update", Some(body)).await;
    assert_eq!(status, 500, "{answer}");
    assert_eq!(limit(&machine, &of, ("pids", "pids.max"), "pids.max"), "50");
    assert_eq!(engine.inspect("c1").await["HostConfig"]["PidsLimit"], 50);
    engine.remove("c1").await;
    machine.assert_clean().await;
}

/// Starts `c1` with this HostConfig, in the machine's cgroup.
async fn sleeping(machine: &Machine, engine: &Engine, image: &str, host: Value) -> Value {
    let mut host = host;
    host["CgroupParent"] = json!(machine.cgroup_parent);
    engine
        .create("c1", json!({ "Image": image, "Cmd": ["sleep", "1000"], "HostConfig": host }))
        .await;
    engine.start("c1").await;
    engine.inspect("c1").await
}

#[tokio::test]
async fn processors_and_what_only_one_version_of_cgroups_has() {
    if skip_without(Capability::Cpusets) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let asked = json!({
        "CpusetCpus": "0",
        "CpuPeriod": 50_000,
        "CpuQuota": 20_000,
        "Memory": 64 << 20,
        "MemorySwappiness": 20,
        "OomKillDisable": true,
    });
    let of = sleeping(&machine, &engine, &image, asked).await;
    assert_eq!(limit(&machine, &of, ("cpuset", "cpuset.cpus"), "cpuset.cpus"), "0");
    let quota = limit(&machine, &of, ("cpu", "cpu.cfs_quota_us"), "cpu.max");
    if has_unified_cgroups() {
        assert_eq!(quota, "20000 50000");
        // They were dropped with a warning.
        assert_eq!(of["HostConfig"]["MemorySwappiness"], Value::Null);
    } else {
        assert_eq!(quota, "20000");
        assert_eq!(limit(&machine, &of, ("memory", "memory.swappiness"), ""), "20");
        let control = limit(&machine, &of, ("memory", "memory.oom_control"), "");
        assert!(control.contains("oom_kill_disable 1"), "{control}");
    }
    engine.remove("c1").await;
    machine.assert_clean().await;
}

/// A block device of this machine: the path of its node, and its numbers.
fn block_device() -> Option<(String, String)> {
    let names = std::fs::read_dir("/sys/block").ok()?.flatten();
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).find_map(|name| {
        let numbers = std::fs::read_to_string(format!("/sys/block/{name}/dev")).ok()?;
        let path = format!("/dev/{name}");
        Path::new(&path).exists().then(|| (path, numbers.trim().to_owned()))
    })
}

#[tokio::test]
async fn rates_of_block_devices_are_limited() {
    let Some((path, numbers)) = block_device() else { return };
    let (machine, _daemon, engine, image) = ready().await;
    let rate = |rate: u64| json!([{ "Path": path, "Rate": rate }]);
    let asked = json!({
        "BlkioDeviceReadBps": rate(1 << 20),
        "BlkioDeviceWriteBps": rate(2 << 20),
        "BlkioDeviceReadIOps": rate(300),
        "BlkioDeviceWriteIOps": rate(400),
    });
    let mut body = json!({ "Image": image, "Cmd": ["sleep", "1000"], "HostConfig": asked });
    body["HostConfig"]["CgroupParent"] = json!(machine.cgroup_parent);
    engine.create("c1", body).await;
    let (status, answer) = engine.request("POST", "/containers/c1/start", None).await;
    if answer.to_string().contains("io.max") {
        // A kernel of v2 without throttling.
        return;
    }
    assert_eq!(status, 204, "{answer}");
    let of = engine.inspect("c1").await;
    assert_eq!(of["HostConfig"]["BlkioDeviceReadBps"], asked["BlkioDeviceReadBps"]);
    let file = |v1: &str| limit(&machine, &of, ("blkio", v1), "io.max");
    if has_unified_cgroups() {
        let expected = format!("{numbers} rbps=1048576 wbps=2097152 riops=300 wiops=400");
        assert_eq!(file(""), expected);
    } else {
        for (v1, rate) in [
            ("blkio.throttle.read_bps_device", 1 << 20),
            ("blkio.throttle.write_bps_device", 2 << 20),
            ("blkio.throttle.read_iops_device", 300),
            ("blkio.throttle.write_iops_device", 400),
        ] {
            assert_eq!(file(v1), format!("{numbers} {rate}"));
        }
    }
    engine.remove("c1").await;
    let host = json!({ "BlkioDeviceReadBps": [{ "Path": "/dev/none", "Rate": 1 }] });
    engine.create("c2", json!({ "Image": image, "HostConfig": host })).await;
    let (status, answer) = engine.request("POST", "/containers/c2/start", None).await;
    assert_eq!(
        (status, answer),
        (500, json!({ "message": "stat /dev/none: no such file or directory" }))
    );
    engine.remove("c2").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn runtimes_have_names_and_what_is_not_there_is_refused() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    for runtime in ["runc", "io.containerd.runc.v2"] {
        let option = format!("--runtime={runtime}");
        assert_eq!(run(&machine, &[&option], &image, "echo runs"), "runs");
    }
    succeed(&machine, &["create", "--name=other", &image]);
    for (option, expected) in [
        ("--runtime=nope", "unknown or invalid runtime name: nope"),
        ("--storage-opt=size=1g", "--storage-opt is supported only for"),
        ("--device=/dev/none", "error gathering device information"),
        ("--device-read-bps=/dev/none:1mb", "stat /dev/none: no such file or directory"),
        ("--volumes-from=none", "No such container: none"),
    ] {
        let error = fail(&machine, &["run", "--rm", option, &image, "true"]);
        assert!(error.contains(expected), "{option}: {error}");
    }
    engine.remove("other").await;
    machine.assert_clean().await;
}
