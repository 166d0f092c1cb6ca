//! Which containers are on which networks: one map, kept by whatever begins or ends a run, or changes
//! its networks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use berth_node::{network::Endpoint, sandbox::Sandbox};

/// A container that runs on a network.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// Those on one network, by their ids.
pub(super) type OfNetwork = BTreeMap<String, Member>;

/// The containers by the ids of their networks.
#[derive(Debug, Default)]
pub(crate) struct Members(Mutex<BTreeMap<String, OfNetwork>>);

impl Members {
    pub(super) fn all(&self) -> MutexGuard<'_, BTreeMap<String, OfNetwork>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a container on these networks and on no others. Returns the networks for which that
    /// changes something.
    pub(super) fn put(
        &self,
        container: &str,
        mut now: BTreeMap<String, Member>,
    ) -> BTreeSet<String> {
        let mut all = self.all();
        let mut changed = BTreeSet::new();
        for (network, members) in all.iter_mut() {
            let member = now.remove(network);
            if members.get(container) != member.as_ref() {
                changed.insert(network.clone());
                match member {
                    Some(member) => members.insert(container.to_owned(), member),
                    None => members.remove(container),
                };
            }
        }
        for (network, member) in now {
            all.entry(network.clone()).or_default().insert(container.to_owned(), member);
            changed.insert(network);
        }
        all.retain(|_, members| !members.is_empty());
        changed
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

    fn member(name: &str) -> Member {
        Member {
            id: "c1".to_owned(),
            name: name.to_owned(),
            endpoint_id: String::new(),
            endpoint: None,
            names: vec![name.to_owned()],
        }
    }

    #[test]
    fn only_networks_with_a_change_are_told() {
        let members = Members::default();
        let on = |networks: &[(&str, &str)]| -> Vec<String> {
            let now = networks.iter().map(|(id, name)| ((*id).to_owned(), member(name))).collect();
            members.put("c1", now).into_iter().collect()
        };
        assert_eq!(on(&[("back", "web"), ("front", "web")]), ["back", "front"]);
        assert_eq!(on(&[("back", "web"), ("front", "web")]), [""; 0]);
        assert_eq!(on(&[("back", "web")]), ["front"]);
        assert_eq!(on(&[("back", "www")]), ["back"]);
        assert_eq!(on(&[]), ["back"]);
        assert!(members.all().is_empty());
    }
}
