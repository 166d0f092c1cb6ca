//! The program as a container sees it: in a network namespace of its own, by UDP and TCP.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    net::{TcpStream, UdpSocket},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    thread::move_into_link_name_space,
};

/// A process in a network namespace of its own, whose loopback is up.
struct Namespace {
    process: Child,
    /// Where it is pinned, as the engine's are: /proc would ask for the right to trace.
    pin: PathBuf,
}

impl Namespace {
    fn new(pin: PathBuf) -> Self {
        let mut process = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up; echo up; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        File::create(&pin).unwrap();
        let own = format!("/proc/{}/ns/net", process.id());
        let mount = Command::new("mount").arg("--bind").arg(own).arg(&pin).status().unwrap();
        assert!(mount.success());
        Self { process, pin }
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(&self.pin).unwrap();
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    move_into_link_name_space(namespace.as_fd(), None).unwrap();
                    work()
                })
                .join()
                .unwrap()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        _ = Command::new("umount").arg(&self.pin).status();
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn write(directory: &Path, name: &str, text: &str) {
    let new = directory.join("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, directory.join(name)).unwrap();
}

fn query(name: &str) -> Vec<u8> {
    let mut message = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

fn by_datagram(name: &str) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut answer = vec![0; 512];
    // As resolvers do: the kernel drops what comes while the server's queue is full.
    for _ in 0..5 {
        socket.send_to(&query(name), "127.0.0.11:53").unwrap();
        if let Ok(length) = socket.recv(&mut answer) {
            answer.truncate(length);
            return answer;
        }
    }
    panic!("no answer about {name}");
}

/// The program, which ends with a test that panics.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn by_stream(name: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect("127.0.0.11:53").unwrap();
    let query = query(name);
    stream.write_all(&(query.len() as u16).to_be_bytes()).unwrap();
    stream.write_all(&query).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).unwrap();
    answer
}

fn network(members: usize, last: &str) -> String {
    let others: String = (0..members)
        .map(|n| format!(r#"{{"names":["other{n}"],"addresses":["10.9.1.{n}"]}},"#))
        .collect();
    format!(r#"{{"name":"back","members":[{others}{{"names":["web"],"addresses":["{last}"]}}]}}"#)
}

#[test]
fn a_container_asks_for_names_until_its_file_is_gone() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    for part in ["networks", "containers", "serving"] {
        fs::create_dir(root.join(part)).unwrap();
    }
    let namespace = Namespace::new(root.join("net"));
    write(root, "networks/n1.json", &network(100, "10.9.0.2"));
    let asker = format!(
        r#"{{"namespace":"{}","networks":["n1"],"resolvers":[{{"address":"127.0.0.2"}}]}}"#,
        namespace.pin.display()
    );
    write(root, "containers/c1.json", &asker);

    let served = inotify::init(CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&served, root.join("serving"), WatchFlags::MOVED_TO).unwrap();
    let program = Command::new(env!("CARGO_BIN_EXE_berth-dns")).arg(root).spawn().unwrap();
    let mut program = Program(program);
    assert!(File::from(served).read(&mut [0; 512]).unwrap() > 0);
    let answer = fs::read_to_string(root.join("serving/c1")).unwrap();
    assert_eq!(answer, namespace.pin.display().to_string());

    namespace.within(|| {
        assert!(by_datagram("WEB").ends_with(&[10, 9, 0, 2]));
        assert!(by_stream("web.back").ends_with(&[10, 9, 0, 2]));
        // All else goes to the resolver, here one that answers with the question and NXDOMAIN.
        let resolver = UdpSocket::bind("127.0.0.2:53").unwrap();
        let resolving = thread::spawn(move || {
            let mut asked = [0; 512];
            let (length, peer) = resolver.recv_from(&mut asked).unwrap();
            asked[2] |= 0x80;
            asked[3] = 3;
            resolver.send_to(&asked[..length], peer).unwrap();
        });
        assert_eq!(by_datagram("example.org")[3] & 15, 3);
        resolving.join().unwrap();
        // One that is not there: SERVFAIL, as soon as that is known.
        assert_eq!(by_datagram("example.org")[3] & 15, 2);
        // Port 53 is the container's own, at whatever address.
        let own = UdpSocket::bind("0.0.0.0:53").unwrap();
        assert!(by_datagram("web").ends_with(&[10, 9, 0, 2]));
        drop(own);
        let junk = UdpSocket::bind("127.0.0.1:0").unwrap();
        for length in 0..600 {
            junk.send_to(&vec![length as u8; length], "127.0.0.11:53").unwrap();
        }
        let start = Instant::now();
        for _ in 0..1000 {
            by_datagram("web");
        }
        eprintln!("a lookup among 101 names takes {:?}", start.elapsed() / 1000);
    });
    let status = fs::read_to_string(format!("/proc/{}/status", program.0.id())).unwrap();
    eprintln!("{}", status.lines().find(|line| line.starts_with("VmRSS")).unwrap());

    fs::remove_file(root.join("containers/c1.json")).unwrap();
    assert!(program.0.wait().unwrap().success());
    assert!(!root.join("serving/c1").exists());
}
