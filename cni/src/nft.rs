//! nftables over netlink: transactions, and what is in a set. No `nft` process: one socket, one message there and one back.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nftables::{
        DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementFlags, SetElementList,
        SetElementMessage,
    },
    none::ControlMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// Of a userdata TLV, as `nft` writes and prints it.
const COMMENT: u8 = 0;

/// A table by family and name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub family: NetfilterProtoFamily,
    pub name: &'static str,
}

/// An element of a set or map of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Element {
    pub set: &'static str,
    /// Its fields one after the other, each filled up to four bytes.
    pub key: Vec<u8>,
    /// Of a map.
    pub data: Option<Vec<u8>>,
    /// The comment that `nft list` shows: whose it is.
    pub comment: Option<String>,
    /// Not in the set any more: the address behind an interval.
    pub ends_interval: bool,
}

impl Element {
    pub(crate) fn new(set: &'static str, key: Vec<u8>) -> Self {
        Self { set, key, data: None, comment: None, ends_interval: false }
    }
}

impl Table {
    /// One transaction: all of it or nothing.
    ///
    /// # Errors
    /// A Linux error number.
    pub(crate) fn commit(self, changes: Vec<(NfTablesMessage, u16)>) -> Result<(), i32> {
        let control = |message| {
            let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFNL_SUBSYS_NFTABLES);
            (NetfilterMessage::new(header, message), NLM_F_REQUEST)
        };
        let mut messages = vec![control(ControlMessage::BatchBegin)];
        messages.extend(changes.into_iter().map(|(message, flags)| {
            let header = NetfilterHeader::new(self.family, 0, 0);
            (NetfilterMessage::new(header, message), NLM_F_REQUEST | NLM_F_ACK | flags)
        }));
        messages.push(control(ControlMessage::BatchEnd));
        let answers = messages.len() - 2;
        converse(messages, answers).map(drop)
    }

    /// Adds elements. One that is there with the same data is fine.
    pub(crate) fn add(self, elements: &[Element]) -> Result<(), i32> {
        let change = |element: &Element| {
            (NfTablesMessage::NewSetElement(self.list(element.set, vec![encode(element)])), NLM_F_CREATE)
        };
        self.commit(elements.iter().map(change).collect())
    }

    /// Adds elements, none of which may be there.
    pub(crate) fn add_new(self, elements: &[Element]) -> Result<(), i32> {
        let change = |element: &Element| {
            let message = NfTablesMessage::NewSetElement(self.list(element.set, vec![encode(element)]));
            (message, NLM_F_CREATE | NLM_F_EXCL)
        };
        self.commit(elements.iter().map(change).collect())
    }

    /// Removes elements; all of them are there.
    pub(crate) fn remove(self, elements: &[Element]) -> Result<(), i32> {
        let key = |element: &Element| Element::new(element.set, element.key.clone());
        let change = |element: &Element| {
            (NfTablesMessage::DeleteSetElement(self.list(element.set, vec![encode(&key(element))])), 0)
        };
        self.commit(elements.iter().map(change).collect())
    }

    /// What is in a set; `None` when there is no such set.
    pub(crate) fn elements(self, set: &'static str) -> Result<Option<Vec<Element>>, i32> {
        let message = NfTablesMessage::GetSetElement(self.list(set, Vec::new()));
        let message = NetfilterMessage::new(NetfilterHeader::new(self.family, 0, 0), message);
        match converse(vec![(message, NLM_F_REQUEST | NLM_F_DUMP)], 1) {
            Ok(answers) => Ok(Some(answers.into_iter().flat_map(|answer| decode(set, answer)).collect())),
            Err(nix::libc::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Whether `key` is in a set, as itself or within an interval.
    pub(crate) fn has(self, set: &'static str, key: Vec<u8>) -> Result<bool, i32> {
        let message = NfTablesMessage::GetSetElement(self.list(set, vec![encode(&Element::new(set, key))]));
        let message = NetfilterMessage::new(NetfilterHeader::new(self.family, 0, 0), message);
        match converse(vec![(message, NLM_F_REQUEST | NLM_F_ACK)], 1) {
            Ok(_) => Ok(true),
            Err(nix::libc::ENOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn list(self, set: &str, elements: Vec<ListAttribute<SetElementAttribute>>) -> SetElementMessage {
        let mut attributes = vec![SetElementList::Table(self.name.to_owned()), SetElementList::Set(set.to_owned())];
        if !elements.is_empty() {
            attributes.push(SetElementList::Elements(elements));
        }
        SetElementMessage { attributes }
    }
}

fn encode(element: &Element) -> ListAttribute<SetElementAttribute> {
    let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(element.key.clone()))];
    if element.ends_interval {
        attributes.push(SetElementAttribute::Flags(SetElementFlags::IntervalEnd));
    }
    if let Some(data) = &element.data {
        attributes.push(SetElementAttribute::Data(DataAttribute::Value(data.clone())));
    }
    if let Some(comment) = &element.comment {
        // Type, length, and a text that ends with a zero.
        let mut userdata = vec![COMMENT, comment.len() as u8 + 1];
        userdata.extend(comment.bytes().chain([0]));
        attributes.push(SetElementAttribute::UserData(userdata));
    }
    ListAttribute::Element(attributes)
}

fn decode(set: &'static str, answer: NetfilterMessage) -> Vec<Element> {
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewSetElement(message)) = answer.inner else {
        return Vec::new();
    };
    let lists = message.attributes.into_iter().filter_map(|attribute| match attribute {
        SetElementList::Elements(elements) => Some(elements),
        _ => None,
    });
    lists.flatten().filter_map(|element| decode_element(set, element)).collect()
}

fn decode_element(set: &'static str, element: ListAttribute<SetElementAttribute>) -> Option<Element> {
    let ListAttribute::Element(attributes) = element else { return None };
    let mut element = Element::new(set, Vec::new());
    for attribute in attributes {
        match attribute {
            SetElementAttribute::Key(DataAttribute::Value(key)) => element.key = key,
            SetElementAttribute::Data(DataAttribute::Value(data)) => element.data = Some(data),
            SetElementAttribute::Flags(flags) => {
                element.ends_interval = flags.contains(SetElementFlags::IntervalEnd);
            }
            SetElementAttribute::UserData(userdata) => element.comment = comment(&userdata),
            _ => {}
        }
    }
    (!element.key.is_empty()).then_some(element)
}

fn comment(userdata: &[u8]) -> Option<String> {
    let [COMMENT, length, rest @ ..] = userdata else { return None };
    let text = rest.get(..usize::from(*length).checked_sub(1)?)?;
    String::from_utf8(text.to_vec()).ok()
}

/// Sends the messages as one and waits until so many of them are answered, or for the first error.
pub(crate) fn converse<M>(messages: Vec<(M, u16)>, answers: usize) -> Result<Vec<M>, i32>
where
    M: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<M>>,
{
    let errno = |error: io::Error| error.raw_os_error().unwrap_or(nix::libc::EIO);
    let mut bytes = Vec::new();
    for (sequence, (message, flags)) in (1..).zip(messages) {
        let mut packet = NetlinkMessage::from(message);
        packet.header.flags = flags;
        packet.header.sequence_number = sequence;
        packet.finalize();
        let start = bytes.len();
        bytes.resize(start + packet.buffer_len(), 0);
        packet.serialize(&mut bytes[start..]);
    }
    let mut socket = Socket::new(NETLINK_NETFILTER).map_err(errno)?;
    socket.bind_auto().map_err(errno)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(errno)?;
    socket.send(&bytes, 0).map_err(errno)?;
    let (mut seen, mut found) = (0, Vec::new());
    while seen < answers {
        let (answer, _) = socket.recv_from_full().map_err(errno)?;
        let mut rest = answer.as_slice();
        while rest.len() >= 16 {
            let packet = NetlinkMessage::<M>::deserialize(rest).map_err(|_| nix::libc::EBADMSG)?;
            let length = (packet.header.length as usize).next_multiple_of(4);
            match packet.payload {
                NetlinkPayload::Error(error) => match error.code {
                    None => seen += 1,
                    Some(code) => return Err(-code.get()),
                },
                NetlinkPayload::Done(_) => seen += 1,
                NetlinkPayload::InnerMessage(message) => found.push(message),
                _ => {}
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
    Ok(found)
}
