//! `cargo xtask lab`: a lab for a person to play with.

use super::{
    APPLICATION, CAMERAS_VLAN, DEVICE, GATEWAY_CAMERAS, GATEWAY_INSIDE, GATEWAY_METERS,
    GATEWAY_OUTSIDE, Lab, Names, Options, Party,
};
use crate::{child, setup, workspace};
use anyhow::{Result, bail};
use std::path::Path;

/// Begins the name of everything in it.
pub const PREFIX: &str = "push-lab";

/// Puts it up, with the controller running, and prints what to type next.
///
/// # Errors
///
/// When not root, when something doesn't build, or when the lab doesn't come up.
pub fn up() -> Result<()> {
    workspace::require_root("the lab", "lab up")?;
    setup::run()?;
    let push_ctl = workspace::build_push_ctl()?;
    let lab = Lab::up(&Options::with_realms(PREFIX, &push_ctl))?;
    print_commands(&lab, &push_ctl);
    lab.stay();
    Ok(())
}

/// Takes it down.
///
/// # Errors
///
/// When not root, or when something is left.
pub fn down() -> Result<()> {
    workspace::require_root("the lab", "lab down")?;
    super::down(PREFIX)?;
    println!("lab: down");
    Ok(())
}

/// Prints what is there of it.
///
/// # Errors
///
/// When it isn't up, or the controller doesn't answer.
pub fn status() -> Result<()> {
    let names = Names::new(PREFIX)?;
    let mut missing = Vec::new();
    for party in Party::ALL {
        let there = names.handle(party).exists();
        println!(
            "{:14} {}",
            names.namespace(party),
            if there { "up" } else { "not there" }
        );
        if !there {
            missing.push(names.namespace(party));
        }
    }
    if !missing.is_empty() {
        bail!("the lab is not up; `cargo xtask lab up` puts it up");
    }
    let push_ctl = workspace::target().join("release/push-ctl");
    let status = child::finish(
        child::command(push_ctl)
            .arg("--socket")
            .arg(names.socket())
            .arg("status"),
    )?;
    print!("{}", String::from_utf8_lossy(&status.stdout));
    if !status.status.success() {
        bail!(
            "the controller doesn't answer: {} (its log: {})",
            child::said(&status),
            names.log().display()
        );
    }
    Ok(())
}

fn print_commands(lab: &Lab, push_ctl: &Path) {
    let [app, gateway, device, meter] = Party::ALL.map(|party| lab.namespace(party));
    let folder = push_ctl.parent().unwrap_or(Path::new(".")).display();
    let socket = lab.socket_path();
    let socket = socket.display();
    let certificate = lab.certificate_path();
    let certificate = certificate.display();
    let log = lab.names.log();
    let log = log.display();
    let ([inside, inside_v6], [outside, outside_v6]) = (GATEWAY_INSIDE, GATEWAY_OUTSIDE);
    let ([server, _], [phone, _]) = (APPLICATION, DEVICE);
    let tokens = lab.folder().join("tokens");
    let tokens = tokens.display();
    println!(
        r#"
The lab is up: {app} ({server}) -- {gateway} ({outside} | {inside}) -- {device} ({phone}),
and behind another NIC of {gateway} ({GATEWAY_METERS}, {GATEWAY_CAMERAS}) -- {meter} ({phone}, too).
Paste these, in order, into a shell of root's:

# The operator's command line, and an application with its key
export PATH="{folder}:$PATH" PUSH_SOCKET={socket}
push-ctl status
KEY=$(push-ctl -j app add weather | sed 's/.*"api_key": *"\([^"]*\)".*/\1/'); echo "$KEY"

# The device registers, and its app asks for a session: sets id, session_id and token
eval "$(ip netns exec {device} coap-client-notls -m post -A 0 'coap://{inside}/rd?ep=phone&lt=3600')"; echo "$id"
eval "$(ip netns exec {device} coap-client-notls -m post -A 0 "coap://{inside}/rd/$id/s?app=weather&inst=home&port=6000")"; echo "$session_id"

# The application server proves that it holds the token
ip netns exec {app} curl -sS --cacert {certificate} -H "Authorization: Bearer $KEY" --json "{{\"token\": \"$token\"}}" https://{outside}:8443/v1/sessions/$session_id/validate; echo

# A trigger leaves the server, and is seen to arrive at the device
ip netns exec {device} timeout 10 tcpdump -Xni dev0 -c 1 udp port 6000 & sleep 1
echo "$token" | ip netns exec {app} push-ctl trigger send --to {outside}:5050 --session $session_id --token-file - --payload 'storm warning'; wait

# What became of it, and the end of it
push-ctl stats
push-ctl session list
push-ctl session revoke $session_id

# The same in short: a session for "NAMESPACE GATEWAY NAME", and a trigger for it
validate() {{
  ip netns exec {app} curl -sS --cacert {certificate} -H "Authorization: Bearer $KEY" --json "{{\"token\": \"$token\"}}" https://{outside}:8443/v1/sessions/$session_id/validate; echo
}}
session() {{
  eval "$(ip netns exec $1 coap-client-notls -m post -A 0 "coap://$2/rd?ep=$3&lt=3600")"
  eval "$(ip netns exec $1 coap-client-notls -m post -A 0 "coap://$2/rd/$id/s?app=weather&inst=home&port=6000")"
  validate
}}
trigger() {{ echo "$token" | ip netns exec {app} push-ctl trigger send --session $session_id --token-file - "$@"; }}

# A device of the realm "meters" has the phone's address, and gets its own triggers
session {meter} {GATEWAY_METERS} meter; push-ctl terminal list
ip netns exec {meter} timeout 10 tcpdump -Xni met0 -c 1 udp port 6000 & sleep 1
trigger --to {outside}:5050 --payload 'for the meter'; wait

# One of the realm "cameras" gets them in a VLAN
session {meter} {GATEWAY_CAMERAS} camera; push-ctl realm list
ip netns exec {meter} timeout 10 tcpdump -eXni met0 -c 1 vlan {CAMERAS_VLAN} & sleep 1
trigger --to {outside}:5050 --payload 'for the camera'; wait

# The server has IPv4, the device IPv6, and a push client that acknowledges
push-ctl app set weather --return-acks
ip netns exec {device} push-ctl emulate device --gateway '[{inside_v6}]:5683' --endpoint phone-6 --app weather --tokens {tokens} --for 10s & sleep 1
field() {{ sed 's/.*"'$1'":"\([^"]*\)".*/\1/' {tokens}; }}
session_id=$(field session_id) token=$(field token); validate
trigger --to {outside}:5050 --payload 'are you there?' --wait-ack 2s
push-ctl session show $session_id; wait

# What the application may do: one trigger a minute, then none
session {device} {inside} phone
push-ctl app set weather --rate 1/m
for n in 1 2 3; do trigger --to {outside}:5050; sleep 0.1; done
push-ctl session list

By IPv6, it is coap://[{inside_v6}], https://[{outside_v6}]:8443 and [{outside_v6}]:5050.
The controller's log is {log}. `cargo xtask lab down` takes everything down."#
    );
}
