//! The names of containers on networks of users, for those on the same networks: in the /etc/hosts of
//! each, and in what `berth-dns` is told. Both are there while the daemon is not.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::{Arc, PoisonError},
    time::Duration,
};

use berth_base::{blocking::blocking, id::SandboxId, layout};
use berth_node::{
    network::{Bridge, Endpoint},
    sandbox::{Sandbox, State},
};
use berth_shim::record as disk;

use super::{
    Driver, Network, endpoints, files, hosts, links,
    members::{Member, OfNetwork, endpoint_id},
    told::Asker,
};
use crate::{
    container::{object::Container, record::Record},
    engine::Engine,
};

/// How long a start waits for the name server.
const PATIENCE: Duration = Duration::from_secs(3);

/// Takes in what networks a container is on now, and makes its names right for all that share one
/// with it. Trouble with one file is told, and is no other container's.
pub(crate) fn update(engine: &Engine, container: &Container) {
    let _naming = engine.networks.naming.lock().unwrap_or_else(PoisonError::into_inner);
    let mut changed = engine.note_networks(container);
    changed.retain(|id| is_custom(engine, id));
    blocking(|| {
        tell(engine, &changed);
        tell_of(engine, container);
        write_hosts(engine, &changed);
    });
}

/// As `update` for all containers, whatever an earlier daemon has written.
pub(crate) fn recover(engine: &Engine) {
    let _naming = engine.networks.naming.lock().unwrap_or_else(PoisonError::into_inner);
    let containers = engine.containers.all();
    for container in &containers {
        engine.note_networks(container);
    }
    let networks: BTreeSet<String> = engine.members.all().keys().cloned().collect();
    let custom: BTreeSet<String> =
        networks.into_iter().filter(|id| is_custom(engine, id)).collect();
    blocking(|| {
        let ids = containers.iter().map(|container| container.id.clone()).collect();
        if let Err(error) = engine.name_server.told.keep(&custom, &ids) {
            tracing::warn!("what the name server was told earlier: {error}");
        }
        tell(engine, &custom);
        for container in &containers {
            tell_of(engine, container);
        }
        write_hosts(engine, &custom);
    });
}

fn is_custom(engine: &Engine, network: &str) -> bool {
    engine.networks.find(network).is_ok_and(|network| network.is_custom())
}

impl Engine {
    /// The containers that run on a network.
    pub(crate) fn members(&self, network: &Network) -> Vec<Member> {
        let all = self.members.all();
        all.get(&network.id).into_iter().flat_map(OfNetwork::values).cloned().collect()
    }

    /// Takes in what networks a container is on now. Returns those for which that changes something.
    fn note_networks(&self, container: &Container) -> BTreeSet<String> {
        self.members.put(&container.id, networks_of(self, container))
    }
}

/// The networks that a container is on, by their ids.
fn networks_of(engine: &Engine, container: &Container) -> BTreeMap<String, Member> {
    let Ok(sandbox) = engine.node.sandboxes.find(&container.id) else { return BTreeMap::new() };
    let record = container.record();
    let member = |endpoint: Option<Endpoint>, settings| Member {
        id: container.id.clone(),
        name: record.name.clone(),
        endpoint_id: endpoint_id(&sandbox, endpoint.as_ref().map_or("", |it| &it.interface)),
        names: endpoints::names(&record, &settings),
        endpoint,
    };
    // A bridge that the record does not name any more may still have its interface.
    let attached = sandbox.endpoints().into_iter();
    let mut found: BTreeMap<String, Member> = attached
        .map(|endpoint| (endpoint.network.clone(), member(Some(endpoint), Default::default())))
        .collect();
    for wanted in endpoints::wanted(&record) {
        let Ok(network) = engine.networks.find(&wanted.name) else { continue };
        match network.driver {
            Driver::Bridge => {
                if let Some(member) = found.get_mut(&network.id) {
                    member.names = endpoints::names(&record, &wanted.settings);
                }
            }
            Driver::Host | Driver::Null if container.state().is_running() => {
                found.insert(network.id.clone(), member(None, wanted.settings));
            }
            Driver::Host | Driver::Null => {}
        }
    }
    found
}

/// The lines that a container finds in its file when it begins, which will be on these bridges.
pub(super) fn lines(engine: &Engine, bridges: &[Bridge]) -> Vec<String> {
    let all = engine.members.all();
    let custom = bridges.iter().filter(|bridge| is_custom(engine, &bridge.network));
    let members = custom.filter_map(|bridge| all.get(&bridge.network)).flat_map(OfNetwork::values);
    hosts::section(members).lines().map(str::to_owned).collect()
}

/// Writes the names into the /etc/hosts of all containers on these networks.
fn write_hosts(engine: &Engine, networks: &BTreeSet<String>) {
    let layout = &engine.node.host.layout;
    for (container, section) in sections(engine, networks) {
        let path = layout.sandbox(&SandboxId::from(container.clone())).join(layout::sandbox::HOSTS);
        match hosts::replace(&path, &section) {
            // Of a run that has just ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(container, "{}: {error}", path.display()),
            Ok(()) => {}
        }
    }
}

/// The section of each container on these networks, from all networks that it is on.
fn sections(engine: &Engine, networks: &BTreeSet<String>) -> BTreeMap<String, String> {
    let custom: BTreeSet<String> =
        engine.networks.all().iter().filter(|it| it.is_custom()).map(|it| it.id.clone()).collect();
    let all = engine.members.all();
    let affected: BTreeSet<&String> =
        networks.iter().filter_map(|id| all.get(id)).flat_map(OfNetwork::keys).collect();
    let section = |container: &String| {
        let own = all.iter().filter(|(id, of)| custom.contains(*id) && of.contains_key(container));
        let others = own.flat_map(|(_, of)| of.values()).filter(|member| member.id != *container);
        hosts::section(others)
    };
    affected.into_iter().map(|container| (container.clone(), section(container))).collect()
}

/// Tells the name server who is on these networks.
fn tell(engine: &Engine, networks: &BTreeSet<String>) {
    for id in networks {
        let name = engine.networks.find(id).map(|network| network.name.clone()).unwrap_or_default();
        let members = engine.members.all().get(id).cloned().unwrap_or_default();
        if let Err(error) = engine.name_server.told.network(id, &name, &members) {
            tracing::warn!(network = id, "tell the name server: {error}");
        }
    }
}

/// Tells the name server what a container may ask. One that has come to a network of a user's keeps its
/// server until it ends: its resolv.conf names that.
fn tell_of(engine: &Engine, container: &Container) {
    let told = &engine.name_server.told;
    let sandbox = engine.node.sandboxes.find(&container.id).ok();
    let sandbox = sandbox.filter(|sandbox| sandbox.state() == State::Ready);
    let asker = sandbox.and_then(|sandbox| asker(engine, container, &sandbox));
    let asker = asker.filter(|asker| !asker.networks.is_empty() || told.knows(&container.id));
    let told = match asker {
        Some(asker) => told.container(&container.id, &asker).map(|()| engine.name_server.wake()),
        None => told.forget(&container.id),
    };
    if let Err(error) = told {
        tracing::warn!(container = container.id, "tell the name server: {error}");
    }
}

/// `None` for one that has no network namespace of its own.
fn asker(engine: &Engine, container: &Container, sandbox: &Sandbox) -> Option<Asker> {
    let record = container.record();
    let namespace = sandbox.meta.netns()?;
    let bridges = sandbox.bridges();
    let all = engine.members.all();
    let is_on = |id: &String| all.get(id).is_some_and(|of| of.contains_key(&container.id));
    let own = bridges.iter().map(|bridge| &bridge.network);
    let networks = own.filter(|id| is_on(id) && is_custom(engine, id)).cloned().collect();
    // One that is on internal networks alone asks nobody outside.
    let resolvers = match bridges.iter().any(|bridge| bridge.is_default) {
        true => files::resolvers(&files::of_host(), &record.host_config),
        false => Vec::new(),
    };
    Some(Asker { namespace, networks, links: links_of(&record), resolvers })
}

/// The names that only this container has for others.
fn links_of(record: &Record) -> BTreeMap<String, String> {
    let wanted = endpoints::wanted(record);
    let of_networks = wanted.iter().flat_map(|one| one.settings.links.iter().flatten());
    let links = record.host_config.links.iter().flatten().chain(of_networks);
    let parsed = links.filter_map(|link| links::parse(link).ok());
    parsed.map(|(name, alias)| (alias.to_owned(), name.to_owned())).collect()
}

/// Waits until a container that is on a network of a user's is served, and lets its resolv.conf name
/// the server, unless somebody has changed the file. Where no server comes, it keeps the resolvers of
/// the host, and the names in its /etc/hosts: a container that starts is worth more than one that does
/// not.
pub(crate) async fn serve(engine: &Arc<Engine>, container: &Container) {
    let server = &engine.name_server;
    let Ok(sandbox) = engine.node.sandboxes.find(&container.id) else { return };
    let Some(namespace) = sandbox.meta.netns() else { return };
    if !server.is_there() || !blocking(|| server.told.knows(&container.id)) {
        return;
    }
    let served = server.served(&engine.logs, &container.id, &namespace);
    let why = match tokio::time::timeout(PATIENCE, served).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(_) => Some(format!("berth-dns has not answered for {} s", PATIENCE.as_secs())),
    };
    if let Some(why) = why {
        return tracing::warn!(
            container = container.id,
            "it has no name server of its own: it keeps the resolvers of the host, and the names in \
             /etc/hosts: {why}"
        );
    }
    let layout = &engine.node.host.layout;
    let path = layout.sandbox(&sandbox.meta.id).join(layout::sandbox::RESOLV_CONF);
    let own =
        files::resolv_conf(&files::of_host(), &container.record().host_config, files::Servers::Own);
    let generated = sandbox.meta.config.resolv_conf.as_deref().unwrap_or_default();
    if let Err(error) = blocking(|| replace_generated(&path, generated, &own)) {
        tracing::warn!(container = container.id, "{}: {error}", path.display());
    }
}

/// Replaces a resolv.conf that is as it was generated. The same file, since containers have it mounted.
fn replace_generated(path: &Path, generated: &str, text: &str) -> io::Result<()> {
    match disk::read_bytes(path)?.record() {
        Some(before) if before == generated.as_bytes() => std::fs::write(path, text),
        _ => Ok(()),
    }
}
