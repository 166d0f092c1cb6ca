//! Elements of sets and maps, to and from their netlink attributes.

use netlink_packet_core::{DecodeError, NlasIterator, Parseable};
use netlink_packet_netfilter::{
    NetfilterMessage, NetfilterMessageInner,
    nftables::{
        DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementFlags,
        SetElementList,
    },
};

const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;

/// Type of the userdata that is a comment, as `nft` writes and prints it (libnftnl, udata.h:
/// NFTNL_UDATA_SET_ELEM_COMMENT).
const COMMENT: u8 = 0;

/// An element of a set or map of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Element {
    pub set: &'static str,
    /// The fields of the key one after the other, each padded to four bytes.
    pub key: Vec<u8>,
    /// The value, in a map; padded as the key is.
    pub data: Option<Vec<u8>>,
    /// The comment that `nft list` shows: whose the element is (`names::owner`).
    pub comment: Option<String>,
    /// The end of an interval: this key is the first one that is not in the set any more.
    pub ends_interval: bool,
}

impl Element {
    pub(crate) fn new(set: &'static str, key: Vec<u8>) -> Self {
        Self { set, key, data: None, comment: None, ends_interval: false }
    }
}

/// The element as the kernel takes it.
pub(super) fn encode(element: &Element) -> ListAttribute<SetElementAttribute> {
    let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(element.key.clone()))];
    // A set of intervals has two elements for each, and the flag marks the second one.
    if element.ends_interval {
        attributes.push(SetElementAttribute::Flags(SetElementFlags::IntervalEnd));
    }
    if let Some(data) = &element.data {
        attributes.push(SetElementAttribute::Data(DataAttribute::Value(data.clone())));
    }
    if let Some(comment) = &element.comment {
        // Type, length, and a text that ends with a zero byte. The length has one byte, which is
        // why ids and names of networks are bounded where they are read.
        let mut userdata = vec![COMMENT, comment.len() as u8 + 1];
        userdata.extend(comment.bytes().chain([0]));
        attributes.push(SetElementAttribute::UserData(userdata));
    }
    ListAttribute::Element(attributes)
}

/// The elements of a response to a look-up.
pub(super) fn decode(set: &'static str, response: NetfilterMessage) -> Vec<Element> {
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewSetElement(message)) = response.inner
    else {
        return Vec::new();
    };
    let lists = message.attributes.into_iter().filter_map(|attribute| match attribute {
        SetElementList::Elements(elements) => Some(elements),
        _ => None,
    });
    lists.flatten().filter_map(|element| decode_element(set, element)).collect()
}

/// The elements of one part of a list, from the attributes themselves. The netlink crate formats
/// the whole list into an error message for each element, in case that is broken, which makes
/// reading a list quadratic.
pub(super) fn decode_list(
    set: &'static str,
    attributes: &[u8],
) -> Result<Vec<Element>, DecodeError> {
    let mut elements = Vec::new();
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        if attribute.kind() != NFTA_SET_ELEM_LIST_ELEMENTS {
            continue;
        }
        for element in NlasIterator::new(attribute.value()) {
            elements.extend(decode_element(set, ListAttribute::parse(&element?)?));
        }
    }
    Ok(elements)
}

fn decode_element(
    set: &'static str,
    element: ListAttribute<SetElementAttribute>,
) -> Option<Element> {
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
    // The catch-all element of a set has no key; this plugin makes none.
    (!element.key.is_empty()).then_some(element)
}

fn comment(userdata: &[u8]) -> Option<String> {
    // Other programs may have other userdata, which is no comment.
    let [COMMENT, length, rest @ ..] = userdata else { return None };
    let text = rest.get(..usize::from(*length).checked_sub(1)?)?;
    String::from_utf8(text.to_vec()).ok()
}
