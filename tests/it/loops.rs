//! Outputs that lead back to an input: 10 frames once became 636 000.
//!
//! `check` sees most of them; these relays are started without it, as when a name or a link changes later.

use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::Path;

use tapster::transport::Address;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::peers::free_port;
use crate::support::relay::OutputBuilder;
use crate::support::relay::dropped;
use crate::support::relay::listening_on;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_address;
use crate::support::stream::folder;
use crate::support::stream::tcp_address;
use crate::support::wait::eventually;
use crate::support::wait::millis;

/// Addresses to listen on, and others that lead there.
fn ways(folder: &Path) -> Vec<(Address, Address)> {
    let [socket, link, hard] = ["in.sock", "link", "hard"].map(|name| folder.join(name));
    symlink(&socket, &link).expect("a link");
    let mut ways = vec![
        (Address::Unix(socket.clone()), Address::Unix(socket.clone())),
        (Address::Unix(socket.clone()), Address::Unix(link)),
        (Address::Unix(socket), Address::Unix(hard)),
    ];
    for (listen, to) in [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("127.0.0.1", "0.0.0.0"),
        ("0.0.0.0", "127.0.0.2"),
        ("0.0.0.0", "localhost"),
        ("::", "127.0.0.1"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
    ] {
        let port = free_port();
        ways.push((tcp_address(listen, port), tcp_address(to, port)));
    }
    ways
}

/// A host without IPv6 has no `::`.
fn can_listen(address: &Address) -> bool {
    match address {
        Address::Tcp { host, .. } if host != "localhost" => {
            std::net::TcpListener::bind((host.as_str(), 0)).is_ok()
        }
        _ => true,
    }
}

on_both_backends! {
    fn an_output_that_leads_to_an_input_of_its_own_relay_is_closed_and_multiplies_nothing(backend) {
        type Change = fn(OutputBuilder) -> OutputBuilder;
        let modes: [Change; 2] = [|output| output, OutputBuilder::unidirectional];
        for mode in modes {
            let folder = folder();
            for (listen, back) in ways(folder.path()) {
                if !can_listen(&listen) {
                    continue;
                }
                let reader = CollectingReader::tcp();
                let round = mode(to_address(back.clone())).reconnect(millis(10), millis(50));
                let relay =
                    relay(backend).input(listening_on(vec![listen])).output(to(&reader)).output(round).start();
                if let (Address::Unix(path), Address::Unix(hard)) = (relay.address(), &back)
                    && hard.ends_with("hard")
                {
                    std::fs::hard_link(path, hard).expect("a link");
                }
                let at = match relay.address() {
                    Address::Tcp { port, .. } => tcp_address(&Ipv4Addr::LOCALHOST.to_string(), port),
                    unix => unix,
                };
                let mut writer = Peer::writer(&at);
                writer.send(&numbered::frames(0, 0..10));
                eventually("the loop is seen, and tried again", || {
                    relay.output(1).connections_to_own_input >= 3
                });
                writer.finish();
                reader.wait_for_frames(10);
                let ledger = relay.drain();
                let [good, round] = &ledger.outputs[..] else { panic!("two outputs") };
                assert_eq!((good.frames_received, good.frames_sent), (10, 10), "{back}");
                assert_eq!((round.frames_sent, dropped(round)), (0, 10), "{back}: counted as lost");
                assert_eq!(ledger.inputs[0].frames, 10, "{back}");
                reader.close();
            }
        }
    }

    /// A relay and its collector may live in one process, and share nothing but that.
    fn a_relay_may_write_to_another_one_of_the_same_process(backend) {
        let (reader, folder) = (CollectingReader::tcp(), folder());
        let addresses = vec![tcp_address("0.0.0.0", 0), Address::Unix(folder.path().join("b.sock"))];
        let behind = relay(backend).input(listening_on(addresses)).output(to(&reader)).start();
        let Address::Tcp { port, .. } = behind.address() else { panic!("tcp") };
        let over_unix = behind.listeners()[1].1.clone();
        let front = relay(backend)
            .output(to_address(tcp_address("127.0.0.1", port)))
            .output(to_address(over_unix))
            .start();
        let mut writer = front.writer();
        writer.send(&numbered::frames(0, 0..10));
        writer.finish();
        reader.wait_for_frames(20);
        assert!(front.drain().outputs.iter().all(|output| output.connections_to_own_input == 0));
        behind.drain_into(reader);
    }
}
