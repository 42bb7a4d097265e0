//! What those who integrate need to know, without reading source code.

use crate::cli::{Failure, Output};
use clap::ValueEnum;
use serde_json::json;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Topic {
    /// For application servers: validating tokens, and the format of triggers, byte by byte
    Trigger,
    /// For push clients on devices: the protocol by which they register, and get sessions and tokens
    Registration,
    /// A complete sender in plain Python
    Sender,
    /// For operators: who may do what on which interface, and what is not defended
    Threats,
}

impl Topic {
    const fn text(self) -> &'static str {
        match self {
            Self::Trigger => include_str!("../topics/trigger.md"),
            Self::Registration => include_str!("../topics/registration.md"),
            Self::Sender => include_str!("../topics/sender.py"),
            Self::Threats => include_str!("../topics/threats.md"),
        }
    }
}

pub(in crate::cli) fn guide(topic: Topic) -> Result<Output, Failure> {
    let text = topic.text();
    Output::new(&json!({ "text": text }), text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use push_common::token::Token;
    use push_common::verdict::Verdict;
    use push_common::wire::{Flags, SessionId, TriggerHeader};
    use zerocopy::IntoBytes;

    /// The value of a line of the worked example.
    fn example(name: &str) -> &'static str {
        let (_, example) = Topic::Trigger
            .text()
            .split_once("## Worked example")
            .unwrap();
        let line = example
            .lines()
            .find_map(|line| line.strip_prefix(&format!("    {name} ")));
        let value = line.unwrap_or_else(|| panic!("no {name}"));
        value.split_whitespace().next().unwrap()
    }

    #[test]
    fn the_worked_example_of_a_trigger_is_right() {
        let token: Token = example("token").parse().unwrap();
        assert_eq!(hex::encode(token.key().to_bytes()), example("key"));
        let id: SessionId = example("session").parse().unwrap();
        let flags = Flags::from_bits(u8::from_str_radix(example("flags"), 16).unwrap());
        assert!(flags.asks_for_acknowledgement() && flags.collapse_key() == 5);
        let sequence = example("sequence").parse().unwrap();
        let payload = hex::decode(example("payload")).unwrap();
        let generation = example("token generation").parse().unwrap();
        let header =
            TriggerHeader::sign(token.key(), flags, generation, id, sequence, &payload).unwrap();
        assert_eq!(
            hex::encode(&header.as_bytes()[..24]),
            example("bytes 0 to 23")
        );
        assert_eq!(hex::encode(header.tag), example("tag"));
        let datagram = [header.as_bytes(), &payload].concat();
        assert_eq!(hex::encode(datagram), example("datagram"));
        let acknowledgement = header.acknowledgement(token.key());
        assert_eq!(
            hex::encode(acknowledgement.as_bytes()),
            example("acknowledgement")
        );
    }

    #[test]
    fn the_reasons_it_names_are_verdicts() {
        let (_, table) = Topic::Trigger.text().split_once("| dropped as |").unwrap();
        let (table, _) = table.split_once("\n\n").unwrap();
        let named: Vec<_> = table.split('`').skip(1).step_by(2).collect();
        assert!(named.len() > 15, "{named:?}");
        for name in named {
            assert!(
                Verdict::ALL.iter().any(|verdict| verdict.label() == name),
                "{name}"
            );
        }
    }
}
