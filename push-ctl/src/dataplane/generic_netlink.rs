//! What the kernel tells by generic netlink: the features of NICs.

use anyhow::{Context, Result, bail};
use rtnetlink::packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlaBuffer, NlasIterator,
};
use rtnetlink::sys::protocols::NETLINK_GENERIC;
use rtnetlink::sys::{Socket, SocketAddr};

/// `GENL_ID_CTRL`, which knows the numbers of all other families.
const CONTROLLER: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// Command, version, and two bytes of nothing.
const HEADER_BYTES: usize = 4;

/// Longest answer, by far.
const ANSWER_BYTES: usize = 64 << 10;

/// A request or an answer.
#[derive(Clone, Debug)]
struct Message {
    family: u16,
    command: u8,
    body: Vec<u8>,
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        HEADER_BYTES + self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        const VERSION: u8 = 1;
        let (header, body) = buffer.split_at_mut(HEADER_BYTES);
        header.copy_from_slice(&[self.command, VERSION, 0, 0]);
        body.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let (head, body) = payload
            .split_at_checked(HEADER_BYTES)
            .ok_or_else(|| DecodeError::from("a generic netlink message without a header"))?;
        Ok(Self {
            family: header.message_type,
            command: head[0],
            body: body.to_vec(),
        })
    }
}

/// The attributes of an answer.
pub(super) struct Answer(Vec<u8>);

impl Answer {
    /// The value of the first attribute of this kind.
    pub(super) fn get(&self, kind: u16) -> Option<&[u8]> {
        attributes(&self.0).find_map(|(found, value)| (found == kind).then_some(value))
    }
}

/// Kinds and values of the attributes that these bytes are.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(|attribute| {
        let attribute: NlaBuffer<&[u8]> = attribute.ok()?;
        let value = attribute.into_inner();
        let length = usize::from(u16::from_ne_bytes([value[0], value[1]]));
        Some((
            NlaBuffer::new(value).kind(),
            value.get(HEADER_BYTES..length)?,
        ))
    })
}

/// An attribute with this value.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute = DefaultNla::new(kind, value.to_vec());
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
}

/// Asks the family of this name.
pub(super) fn ask(family: &str, command: u8, attributes: Vec<u8>) -> Result<Answer> {
    let name = attribute(CTRL_ATTR_FAMILY_NAME, &[family.as_bytes(), b"\0"].concat());
    let about = exchange(CONTROLLER, CTRL_CMD_GETFAMILY, name)
        .with_context(|| format!("the kernel has no generic netlink family {family}"))?;
    let number = about
        .get(CTRL_ATTR_FAMILY_ID)
        .and_then(|value| value.try_into().ok())
        .map(u16::from_ne_bytes)
        .with_context(|| format!("the family {family} has no number"))?;
    exchange(number, command, attributes)
}

fn exchange(family: u16, command: u8, body: Vec<u8>) -> Result<Answer> {
    let mut socket = Socket::new(NETLINK_GENERIC).context("cannot open a netlink socket")?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut message = NetlinkMessage::from(Message {
        family,
        command,
        body,
    });
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut buffer = Vec::with_capacity(ANSWER_BYTES);
    socket.recv(&mut buffer, 0)?;
    let answer = NetlinkMessage::<Message>::deserialize(&buffer)?;
    match answer.payload {
        NetlinkPayload::InnerMessage(answer) => Ok(Answer(answer.body)),
        NetlinkPayload::Error(error) => Err(error.to_io().into()),
        other => bail!("an answer of another kind: {other:?}"),
    }
}

impl From<Message> for NetlinkPayload<Message> {
    fn from(message: Message) -> Self {
        Self::InnerMessage(message)
    }
}
