//! The names of containers on networks of users: a part of the /etc/hosts of each that runs, which is
//! written anew whenever one comes or goes. It is there while the daemon is not.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
    sync::{Arc, PoisonError},
};

use berth_base::{blocking::blocking, id::SandboxId, layout};
use berth_node::{
    network::{Bridge, Endpoint},
    sandbox::Sandbox,
};

use super::{Driver, endpoints};
use crate::{container::object::Container, engine::Engine};

const BEGIN: &str = "# Containers on the same networks, kept by the engine:\n";
/// Bytes of a file that is looked at.
const MOST: u64 = 1 << 20;
const END: &str = "# End of containers.\n";

/// A container that runs on a network.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub id: String,
    pub name: String,
    /// 64 hexadecimal digits.
    pub endpoint_id: String,
    /// None on the network of the host, and on `none`.
    pub endpoint: Option<Endpoint>,
    /// The names by which others on the network find it, its own first.
    pub names: Vec<String>,
}

/// Makes the names in all containers what they are now. Trouble with one file is told, and is no
/// other container's.
pub(crate) fn refresh(engine: &Engine) {
    if !engine.networks.all().iter().any(|network| network.is_custom()) {
        return;
    }
    let _naming = engine.networks.naming.lock().unwrap_or_else(PoisonError::into_inner);
    let running: Vec<(Arc<Container>, Arc<Sandbox>)> = engine
        .containers
        .all()
        .into_iter()
        .filter(|container| container.state().is_running())
        .filter_map(|container| {
            let sandbox = engine.node.sandboxes.find(&container.id).ok()?;
            (!sandbox.bridges().is_empty()).then_some((container, sandbox))
        })
        .collect();
    let mut networks: BTreeMap<String, Vec<Member>> = BTreeMap::new();
    for network in engine.networks.all().iter().filter(|network| network.is_custom()) {
        networks.insert(network.id.clone(), engine.members(network));
    }
    for (container, sandbox) in running {
        let own = sandbox.bridges();
        let others = own
            .iter()
            .filter_map(|bridge| networks.get(&bridge.network))
            .flatten()
            .filter(|member| member.id != container.id);
        let section = section(others);
        let id = SandboxId::from(container.id.clone());
        let path = engine.node.host.layout.sandbox(&id).join(layout::sandbox::HOSTS);
        if let Err(error) = blocking(|| replace(&path, &section)) {
            tracing::warn!(container = container.id, "{}: {error}", path.display());
        }
    }
}

/// The lines that a container finds in its file when it begins, which will be on these bridges.
pub(super) fn lines(engine: &Engine, bridges: &[Bridge]) -> Vec<String> {
    let members: Vec<Member> = bridges
        .iter()
        .filter_map(|bridge| engine.networks.find(&bridge.network).ok())
        .filter(|network| network.is_custom())
        .flat_map(|network| engine.members(&network))
        .collect();
    section(members.iter()).lines().map(str::to_owned).collect()
}

/// The lines for these members; nothing for none.
fn section<'a>(members: impl Iterator<Item = &'a Member>) -> String {
    let mut text = String::new();
    for member in members {
        let endpoint = member.endpoint.iter();
        for (address, _) in endpoint.flat_map(|it| [it.ipv4, it.ipv6]).flatten() {
            // To write to a string cannot fail.
            let _ = writeln!(text, "{}\t{}", address.addr(), member.names.join(" "));
        }
    }
    match text.is_empty() {
        true => text,
        false => format!("{BEGIN}{text}{END}"),
    }
}

/// Puts the section in the place of an earlier one, and leaves what else is in the file: a container
/// may write to it. The same file, since the container has it mounted.
fn replace(path: &Path, section: &str) -> io::Result<()> {
    // The file is as large as a container likes.
    if fs::metadata(path)?.len() > MOST {
        let text =
            format!("a container has made it larger than {MOST} bytes: names are not kept in it");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    let mut before = Vec::new();
    File::open(path)?.take(MOST).read_to_end(&mut before)?;
    let text = String::from_utf8_lossy(&before);
    let after = with_section(&text, section);
    if after == text {
        return Ok(());
    }
    let mut file = File::options().write(true).open(path)?;
    // First the text, then the end: who reads in between finds no name missing that stays.
    file.write_all(after.as_bytes())?;
    file.set_len(after.len() as u64)
}

fn with_section(text: &str, section: &str) -> String {
    let without = match text.split_once(BEGIN) {
        Some((before, rest)) => {
            let after = rest.split_once(END).map_or("", |(_, after)| after);
            format!("{before}{after}")
        }
        None => text.to_owned(),
    };
    without + section
}

impl Engine {
    /// The containers that run on a network.
    pub(crate) fn members(&self, network: &super::Network) -> Vec<Member> {
        let member = |container: Arc<Container>| {
            let sandbox = self.node.sandboxes.find(&container.id).ok()?;
            let endpoint = sandbox.endpoints().into_iter().find(|it| it.network == network.id);
            let record = container.record();
            let wanted = endpoints::wanted(&record)
                .into_iter()
                .find(|one| self.networks.find(&one.name).is_ok_and(|it| it.id == network.id));
            // A bridge that the record does not name any more may still have its interface.
            let is_on = match network.driver {
                Driver::Bridge => endpoint.is_some(),
                Driver::Host | Driver::Null => wanted.is_some() && container.state().is_running(),
            };
            let interface = endpoint.as_ref().map_or("", |endpoint| &endpoint.interface);
            let endpoint_id = endpoint_id(&sandbox, interface);
            is_on.then(|| Member {
                id: container.id.clone(),
                name: record.name.clone(),
                endpoint_id,
                names: endpoints::names(&record, &wanted.map(|it| it.settings).unwrap_or_default()),
                endpoint,
            })
        };
        self.containers.all().into_iter().filter_map(member).collect()
    }
}

/// 64 digits that no other interface of another run has.
pub(crate) fn endpoint_id(sandbox: &Sandbox, interface: &str) -> String {
    use sha2::Digest as _;
    let of_run = format!("{} {} {interface}", sandbox.meta.id, sandbox.meta.created_at);
    let digest = sha2::Sha256::digest(of_run);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_section_changes() {
        let one = format!("{BEGIN}10.0.0.2\tweb\n{END}");
        let text = with_section("127.0.0.1\tlocalhost\n", &one);
        assert_eq!(text, format!("127.0.0.1\tlocalhost\n{one}"));
        let own = text.clone() + "1.2.3.4\town\n";
        let two = format!("{BEGIN}10.0.0.3\tdb\n{END}");
        assert_eq!(with_section(&own, &two), format!("127.0.0.1\tlocalhost\n1.2.3.4\town\n{two}"));
        assert_eq!(with_section(&own, ""), "127.0.0.1\tlocalhost\n1.2.3.4\town\n");
    }
}
