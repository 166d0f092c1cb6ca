//! A table of nftables: transactions, and the elements of its sets.

use std::time::{Duration, Instant};

use netlink_packet_core::{
    DecodeError, DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nftables::{
        GenAttribute, GenMessage, ListAttribute, NfTablesMessage, SetElementAttribute,
        SetElementList, SetElementMessage,
    },
    none::ControlMessage,
};

use super::element::{Element, decode, decode_list, encode};
use crate::netfilter::{ask, dump, request};

const NFNL_SUBSYS_NFTABLES: u16 = 10;

const NFNL_MSG_BATCH_BEGIN: u8 = 16;

const NFNL_BATCH_GENID: u16 = 1;

/// Where the attributes of a packet begin: behind struct nlmsghdr and struct nfgenmsg.
const ATTRIBUTES: usize = 20;

/// For how long a transaction is tried again while others change the rules. A runtime waits longer
/// than that for a plugin.
const PATIENCE: Duration = Duration::from_secs(20);

/// Elements that one transaction removes: some tens of KiB, which fit into a socket's send buffer.
const BATCH: usize = 500;

/// A generation of the kernel's rules: each transaction of any program begins a new one.
#[derive(Clone, Copy, Debug)]
struct Generation(u32);

impl Generation {
    /// For a transaction that does not depend on what it was decided by.
    // The kernel does not compare 0 (nfnetlink_rcv_batch()).
    const ANY: Self = Self(0);

    fn now() -> Result<Self, i32> {
        let message = NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() });
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
        let responses = ask(vec![NetfilterMessage::new(header, message)])?;
        let attributes =
            responses.into_iter().flatten().flatten().flat_map(|response| match response.inner {
                NetfilterMessageInner::NfTables(NfTablesMessage::NewGen(message)) => {
                    message.attributes
                }
                _ => Vec::new(),
            });
        let mut ids = attributes.filter_map(|attribute| match attribute {
            GenAttribute::Id(id) => Some(Self(id)),
            _ => None,
        });
        ids.next().ok_or(nix::libc::EBADMSG)
    }
}

/// A table by family and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub family: NetfilterProtoFamily,
    pub name: &'static str,
}

impl Table {
    /// One transaction: all changes, or none of them.
    ///
    /// # Errors
    /// A Linux error number.
    pub(crate) fn commit(self, changes: &[(NfTablesMessage, u16)]) -> Result<(), i32> {
        let begun = Instant::now();
        loop {
            // A transaction that meets one of another program may be refused, as with ERESTART.
            match self.commit_to(Generation::ANY, changes) {
                Err(errno) if is_transient(errno) && begun.elapsed() < PATIENCE => {}
                result => return result,
            }
        }
    }

    /// As `commit`, but only if the rules are still of this generation; ERESTART otherwise.
    fn commit_to(
        self,
        generation: Generation,
        changes: &[(NfTablesMessage, u16)],
    ) -> Result<(), i32> {
        // A transaction is the messages between a begin and an end. The subsystem is the header's
        // res_id, and the generation an attribute of the begin.
        let attributes =
            vec![DefaultNla::new(NFNL_BATCH_GENID, generation.0.to_be_bytes().to_vec())];
        let mut messages =
            vec![control(ControlMessage::Other { message_type: NFNL_MSG_BATCH_BEGIN, attributes })];
        let header = NetfilterHeader::new(self.family, 0, 0);
        messages.extend(changes.iter().map(|(message, flags)| {
            (NetfilterMessage::new(header.clone(), message.clone()), NLM_F_REQUEST | flags)
        }));
        // Errors are reported for every message, in order. Success is reported for the last one
        // only, so that the first response is either the first error or the success of all.
        if let Some((_, flags)) = messages.last_mut() {
            *flags |= NLM_F_ACK;
        }
        messages.push(control(ControlMessage::BatchEnd));
        request(messages)
    }

    /// Adds elements; success for those that are there with the same value.
    pub(crate) fn add(self, elements: &[Element]) -> Result<(), i32> {
        self.commit(&self.additions(elements, NLM_F_CREATE))
    }

    /// Adds elements, none of which may be there: EEXIST otherwise.
    pub(crate) fn add_new(self, elements: &[Element]) -> Result<(), i32> {
        self.commit(&self.additions(elements, NLM_F_CREATE | NLM_F_EXCL))
    }

    fn additions(self, elements: &[Element], flags: u16) -> Vec<(NfTablesMessage, u16)> {
        let messages = elements.iter().map(|element| self.list(element.set, vec![encode(element)]));
        messages.map(|message| (NfTablesMessage::NewSetElement(message), flags)).collect()
    }

    /// Removes those of `keys` whose comment `is_wanted`, and returns them as they were.
    ///
    /// Keys are looked up and removed in the same generation of the rules. Otherwise a key might
    /// be another pod's by the time of its removal; and one that somebody else has removed would
    /// keep the others from being removed, since a transaction is all or nothing.
    pub(crate) fn remove(
        self,
        keys: &[Element],
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<Element>, i32> {
        let mut removed = Vec::new();
        for some in keys.chunks(BATCH) {
            let begun = Instant::now();
            loop {
                // First the generation, then the keys: if the rules change in between, the removal
                // is refused, and both are read again.
                let generation = Generation::now()?;
                let found = only(self.look_up(some)?, &is_wanted);
                if found.is_empty() {
                    break;
                }
                match self.commit_to(generation, &self.removals(&found)) {
                    Ok(()) => removed.extend(found),
                    Err(errno) if is_transient(errno) && begun.elapsed() < PATIENCE => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
        Ok(removed)
    }

    /// Removes those of `keys` that are there, which have no comments.
    pub(crate) fn forget(self, keys: &[Element]) -> Result<(), i32> {
        let found = self.look_up(keys)?;
        match found.is_empty() {
            true => Ok(()),
            false => self.commit(&self.removals(&found)),
        }
    }

    /// Removes all elements of these sets whose comment `is_wanted`, and returns them as they were.
    pub(crate) fn remove_all(
        self,
        sets: &[&'static str],
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<Element>, i32> {
        let begun = Instant::now();
        let mut removed = Vec::new();
        // Listed again until there are none: a hash table that is resized while it is listed has
        // its elements in another order, so that one list may miss some of them.
        while begun.elapsed() < PATIENCE {
            let found = self.owned(sets, &is_wanted)?;
            if found.is_empty() {
                return Ok(removed);
            }
            removed.extend(self.remove(&found, &is_wanted)?);
        }
        // Elements with such comments are added as fast as they are removed.
        Err(nix::libc::EBUSY)
    }

    /// Elements of these sets whose comment `is_wanted`; none where there is no table.
    fn owned(
        self,
        sets: &[&'static str],
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<Element>, i32> {
        let mut found = Vec::new();
        for set in sets {
            // The table is made with all its sets: where one is missing, the others are too.
            let Some(elements) = self.elements(set)? else { break };
            found.extend(only(elements, &is_wanted));
        }
        Ok(found)
    }

    /// The changes that remove elements, by their keys alone.
    pub(super) fn removals(self, elements: &[Element]) -> Vec<(NfTablesMessage, u16)> {
        let key = |element: &Element| {
            let ends_interval = element.ends_interval;
            encode(&Element { ends_interval, ..Element::new(element.set, element.key.clone()) })
        };
        let messages = elements.iter().map(|element| self.list(element.set, vec![key(element)]));
        messages.map(|message| (NfTablesMessage::DeleteSetElement(message), 0)).collect()
    }

    /// All elements of a set; `None` when there is no such set.
    fn elements(self, set: &'static str) -> Result<Option<Vec<Element>>, i32> {
        let message = NfTablesMessage::GetSetElement(self.list(set, Vec::new()));
        let packets =
            match dump(&NetfilterMessage::new(NetfilterHeader::new(self.family, 0, 0), message)) {
                Err(nix::libc::ENOENT) => return Ok(None),
                packets => packets?,
            };
        let elements: Result<Vec<Vec<Element>>, DecodeError> = packets
            .iter()
            .map(|packet| decode_list(set, packet.get(ATTRIBUTES..).unwrap_or_default()))
            .collect();
        Ok(Some(elements.map_err(|_| nix::libc::EBADMSG)?.concat()))
    }

    /// Those of `keys` that are in their sets, as an element or within an interval, with value and
    /// comment. The kernel looks them up one by one, so the cost does not depend on the size of the
    /// set.
    pub(crate) fn look_up(self, keys: &[Element]) -> Result<Vec<Element>, i32> {
        let header = NetfilterHeader::new(self.family, 0, 0);
        let questions = keys.iter().map(|element| {
            let message = self.list(element.set, vec![key(element)]);
            NetfilterMessage::new(header.clone(), NfTablesMessage::GetSetElement(message))
        });
        let mut found = Vec::new();
        for (key, response) in keys.iter().zip(ask(questions.collect())?) {
            match response {
                Ok(responses) => found
                    .extend(responses.into_iter().flat_map(|response| decode(key.set, response))),
                // No such element, set or table.
                Err(nix::libc::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(found)
    }

    /// The message about elements of a set of this table.
    fn list(
        self,
        set: &str,
        elements: Vec<ListAttribute<SetElementAttribute>>,
    ) -> SetElementMessage {
        let mut attributes =
            vec![SetElementList::Table(self.name.to_owned()), SetElementList::Set(set.to_owned())];
        if !elements.is_empty() {
            attributes.push(SetElementList::Elements(elements));
        }
        SetElementMessage { attributes }
    }
}

/// An element's key alone, which names it.
fn key(element: &Element) -> ListAttribute<SetElementAttribute> {
    encode(&Element::new(element.set, element.key.clone()))
}

/// The begin or end of a transaction.
fn control(message: ControlMessage) -> (NetfilterMessage, u16) {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFNL_SUBSYS_NFTABLES);
    (NetfilterMessage::new(header, message), NLM_F_REQUEST)
}

/// Those whose comment `is_wanted`.
fn only(elements: Vec<Element>, is_wanted: impl Fn(&str) -> bool) -> Vec<Element> {
    elements
        .into_iter()
        .filter(|element| element.comment.as_deref().is_some_and(&is_wanted))
        .collect()
}

/// Errors that another attempt may not meet, after which `nft` tries again too.
fn is_transient(errno: i32) -> bool {
    [nix::libc::ERESTART, nix::libc::EINTR, nix::libc::EBUSY, nix::libc::EAGAIN].contains(&errno)
}
