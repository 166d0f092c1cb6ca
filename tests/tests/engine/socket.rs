//! The engine's socket.

use std::{
    fs,
    os::{
        fd::AsRawFd,
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net::UnixListener,
        },
    },
};

use berth_tests::{Engine, Machine, binary, engine};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// As a service of systemd is started: with the socket as descriptor 3.
const SERVICE: &str = "#!/usr/bin/env bash
export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=docker.socket
exec $BERTHD \"$@\" 3<&$SOCKET
";

#[tokio::test]
async fn a_socket_of_systemd_is_served_as_it_is() {
    let mut machine = Machine::new();
    machine.config = engine::config();
    let path = Engine::of(&machine).socket;
    let listener = UnixListener::bind(&path).unwrap();
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o606)).unwrap();
    let made = fs::metadata(&path).unwrap();
    let script = SERVICE
        .replace("$BERTHD", &binary("berthd").display().to_string())
        .replace("$SOCKET", &listener.as_raw_fd().to_string());
    let programs = machine.path("programs");
    fs::create_dir(&programs).unwrap();
    fs::write(programs.join("berthd"), script).unwrap();
    fs::set_permissions(programs.join("berthd"), fs::Permissions::from_mode(0o755)).unwrap();
    machine.programs = Some(programs);

    let daemon = machine.start().await;
    // The daemon has it alone.
    drop(listener);
    let engine = Engine::of(&machine);
    assert_eq!(engine.get("/info").await["Containers"], 0, "{}", daemon.log());
    let served = fs::metadata(&path).unwrap();
    assert_eq!((served.ino(), served.mode()), (made.ino(), made.mode()));
    machine.assert_clean().await;
}
