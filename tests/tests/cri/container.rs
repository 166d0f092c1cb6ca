//! What a container sees: files, environment, mounts and devices, and the security context that it
//! runs with.

use std::fs;

use berth_proto::v1;
use berth_tests::{Config, bind, container, pod, ready};
use tonic::Code;

#[tokio::test]
async fn a_container_sees_what_it_should() {
    let (machine, _daemon, cri, image) = ready().await;
    let mut config = pod(&machine, "look");
    config.dns_config = Some(v1::DnsConfig {
        servers: vec!["10.0.0.10".into()],
        searches: vec!["svc.local".into()],
        options: vec!["ndots:5".into()],
    });
    let sandbox = cri.run_pod(config).await.unwrap();
    let ip = cri.pod_status(&sandbox).await.unwrap().network.unwrap().ip;
    fs::create_dir_all(machine.path("volume")).unwrap();
    fs::write(machine.path("volume/file"), "from the host").unwrap();
    let mut config = container("c", &image, "exec sleep 1000");
    config.working_dir = "/made/for/it".to_owned();
    config.envs = vec![
        v1::KeyValue { key: "FROM_CONFIG".into(), value: b"a b".to_vec() },
        v1::KeyValue { key: "FROM_IMAGE".into(), value: b"no".to_vec() },
    ];
    let mount = |container_path: &str, readonly| v1::Mount {
        readonly,
        ..bind(&machine.path("volume"), container_path)
    };
    config.mounts = vec![mount("/rw", false), mount("/ro", true)];
    let id = cri.run(&sandbox, config).await.unwrap();

    assert_eq!(
        cri.sh(&id, "hostname; cat /etc/hostname; echo $HOSTNAME").await,
        "look\nlook\nlook\n"
    );
    assert_eq!(
        cri.sh(&id, "cat /etc/resolv.conf").await,
        "search svc.local\nnameserver 10.0.0.10\noptions ndots:5\n"
    );
    assert!(cri.sh(&id, "cat /etc/hosts").await.contains(&format!("{ip}\tlook")));
    assert_eq!(
        cri.sh(&id, "pwd; echo $FROM_CONFIG $FROM_IMAGE $PATH").await,
        "/made/for/it\na b no /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    );
    assert_eq!(
        cri.sh(&id, "cat /ro/file; echo x > /rw/new && ! echo x 2>/dev/null > /ro/new").await,
        "from the host"
    );
    assert_eq!(fs::read_to_string(machine.path("volume/new")).unwrap(), "x\n");
    // Its own processes, the pod's network, and the devices of every container.
    assert_eq!(cri.sh(&id, "cat /proc/1/comm").await, "sleep\n");
    assert!(cri.sh(&id, "ip addr show eth0").await.contains(&ip));
    assert_eq!(
        cri.sh(
            &id,
            "echo x > /dev/null; head -c 3 /dev/zero | wc -c; stat -c %a /dev/shm; ls /dev/pts/ptmx"
        )
        .await,
        "3\n1777\n/dev/pts/ptmx\n"
    );
    assert!(cri.sh(&id, "cat /proc/mounts").await.lines().all(|line| !line.contains(" shared:")));
    // Descriptors 0 to 2 and the one of the directory that ls reads. None of the daemon or the shim
    // is left open.
    assert_eq!(cri.sh(&id, "ls /proc/self/fd | wc -l").await.trim(), "4");
    let status = cri.status(&id).await.unwrap();
    assert_eq!(status.mounts.len(), 2);
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn security_is_what_was_asked_for() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "secure")).await.unwrap();
    let with = |name: &str, change: &dyn Fn(&mut v1::LinuxContainerSecurityContext)| {
        let mut config = container(name, &image, "exec sleep 1000");
        change(config.security());
        config
    };
    let status_line = "grep -E '^(CapEff|CapBnd|CapInh|NoNewPrivs|Seccomp):' /proc/self/status | \
        tr '\\t\\n' ' ;'";

    let plain = cri.run(&sandbox, with("plain", &|_| {})).await.unwrap();
    let said = cri.sh(&plain, status_line).await;
    assert!(
        said.contains("CapInh: 0000000000000000")
            && said.contains("NoNewPrivs: 0")
            && said.contains("Seccomp: 0"),
        "{said}"
    );
    assert!(said.contains("CapEff: 00000000a80425fb"), "{said}");

    let confined = with("confined", &|security| {
        security.no_new_privs = true;
        security.seccomp = Some(v1::SecurityProfile::default());
        security.capabilities = Some(v1::Capability {
            drop_capabilities: vec!["ALL".into()],
            add_capabilities: vec!["CHOWN".into()],
            ..Default::default()
        });
        security.readonly_rootfs = true;
        security.run_as_user = Some(v1::Int64Value { value: 0 });
        security.masked_paths = vec!["/etc/group".into(), "/root".into()];
        security.readonly_paths = vec!["/proc/sys".into()];
    });
    let confined = cri.run(&sandbox, confined).await.unwrap();
    let said = cri.sh(&confined, status_line).await;
    assert!(
        said.contains("CapEff: 0000000000000001") && said.contains("CapBnd: 0000000000000001"),
        "{said}"
    );
    assert!(said.contains("NoNewPrivs: 1") && said.contains("Seccomp: 2"), "{said}");
    assert_eq!(
        cri.sh(
            &confined,
            "! touch /x 2>/dev/null; touch /dev/shm/y; wc -c < /etc/group; ls /root | wc -l"
        )
        .await,
        "0\n0\n"
    );
    assert_eq!(
        cri.sh(
            &confined,
            "! unshare -m true 2>/dev/null; ! sh -c 'echo 1 > /proc/sys/vm/drop_caches' \
                2>/dev/null && echo refused"
        )
        .await,
        "refused\n"
    );

    let web = with("web", &|security| {
        security.run_as_username = "web".into();
        security.supplemental_groups = vec![1234];
    });
    let web = cri.run(&sandbox, web).await.unwrap();
    assert_eq!(
        cri.sh(&web, "id -u; id -g; id -G; echo $HOME").await,
        "1000\n1000\n1000 1234 2000\n/home/web\n"
    );
    let user = cri.status(&web).await.unwrap().user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid), (1000, 1000));
    // A numeric user is taken as it is, whether the image's passwd has it or not.
    let number = cri
        .run(
            &sandbox,
            with("number", &|security| security.run_as_user = Some(v1::Int64Value { value: 4242 })),
        )
        .await
        .unwrap();
    assert_eq!(cri.sh(&number, "id -u; id -g").await, "4242\n0\n");

    let unknown = v1::Capability { add_capabilities: vec!["FLY".into()], ..Default::default() };
    for refused in [
        with("privileged", &|security| security.privileged = true),
        with("group", &|security| security.run_as_group = Some(v1::Int64Value { value: 1 })),
        with("capability", &|security| security.capabilities = Some(unknown.clone())),
    ] {
        assert_eq!(cri.create(&sandbox, refused).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let nobody = cri
        .create(
            &sandbox,
            with("nobody", &|security| security.run_as_username = "nobody-there".into()),
        )
        .await
        .unwrap();
    assert_eq!(cri.start(&nobody).await.unwrap_err().code(), Code::InvalidArgument);
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
