//! Collectors whose host or network fails without a word: no FIN, no RST, packets are lost.
//!
//! Without a limit of its own the kernel sends the same bytes again for a quarter of an hour. The relay once noticed a
//! pulled cable after 939 s, with 3.9 MB more written into the dead connection.

use std::thread;
use std::time::Duration;

use tapster::transport::Address;

use crate::support::collector::CollectingReader;
use crate::support::hosts::Hosts;
use crate::support::hosts::connections_to_collector;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_peer;
use crate::support::wait::eventually;
use crate::support::wait::millis;

const USER_TIMEOUT: Duration = Duration::from_secs(2);
/// For a peer that stalls: its kernel answers probes only twice a second, and a busy machine is late with its looks.
const STALL_TIMEOUT: Duration = Duration::from_secs(4);

on_both_backends! {
    fn a_vanished_collector_is_noticed_while_frames_flow(backend) {
        let Some(hosts) = Hosts::new() else { return };
        hosts.on_relay_host(|| {
            let listener = hosts.listen();
            let output = to_peer(&listener).user_timeout(USER_TIMEOUT);
            let relay = relay(backend).output(output).start();
            let _reader = listener.accept_session();
            let mut writer = relay.writer();
            hosts.pull_the_cable();
            let mut sequence = 0;
            eventually("it is noticed", || {
                writer.send(&numbered::frames(0, sequence..sequence + 1));
                sequence += 1;
                relay.output(0).bytes_unconfirmed > 0
            });
            // Nothing more is written.
            writer.send(&numbered::frames(0, sequence..sequence + 1));
            relay.wait_for_frames(sequence + 1);
            let output = relay.output(0);
            assert!(output.frames_queued > 0, "{output:?}");
            assert!(output.bytes_unconfirmed <= output.bytes_sent, "{output:?}");
            hosts.plug_the_cable();
            expect_new_connection(&listener);
        });
    }

    fn a_vanished_collector_is_noticed_while_nothing_flows(backend) {
        let Some(hosts) = Hosts::new() else { return };
        hosts.on_relay_host(|| {
            let listener = hosts.listen();
            let _relay = relay(backend).output(to_peer(&listener).user_timeout(USER_TIMEOUT)).start();
            let _reader = listener.accept_session();
            hosts.pull_the_cable();
            expect_given_up();
            hosts.plug_the_cable();
            expect_new_connection(&listener);
        });
    }

    /// The kernel asks a peer without room ever more rarely.
    fn a_vanished_collector_is_noticed_while_it_stalls(backend) {
        let Some(hosts) = Hosts::new() else { return };
        hosts.on_relay_host(|| {
            let listener = hosts.listen();
            let relay = relay(backend).output(to_peer(&listener).user_timeout(STALL_TIMEOUT)).start();
            let reader = listener.accept_session();
            reader.set_receive_buffer(16 << 10);
            fill(&relay.address());
            thread::sleep(3 * STALL_TIMEOUT);
            assert!(listener.poll_accept().is_none(), "it only stalled");
            hosts.pull_the_cable();
            expect_given_up();
            hosts.plug_the_cable();
            expect_new_connection(&listener);
            let output = relay.output(0);
            assert!(0 < output.bytes_unconfirmed && output.bytes_unconfirmed <= output.bytes_sent, "{output:?}");
        });
    }

    /// STOP goes into a connection that is dead: it is no byte of a frame.
    fn bytes_that_are_unconfirmed_at_the_end_are_bytes_that_were_sent(backend) {
        let Some(hosts) = Hosts::new() else { return };
        hosts.on_relay_host(|| {
            let listener = hosts.listen();
            let output = to_peer(&listener).finish_timeout(millis(100));
            let relay = relay(backend).output(output).start();
            let mut reader = listener.accept_session();
            let mut writer = relay.writer();
            writer.send(&numbered::frames_of_len(0, 0..1, 100));
            reader.read_frame();
            hosts.pull_the_cable();
            writer.send(&numbered::frames_of_len(0, 1..2, 100));
            writer.finish();
            relay.wait_until_written();
            let ledger = relay.drain();
            let output = &ledger.outputs[0];
            assert_eq!(2 * output.bytes_unconfirmed, output.bytes_sent, "{output:?}");
        });
    }

    /// The kernel's own limit would cut it off: it takes a peer without room for one that does not answer.
    fn a_collector_that_stalls_for_longer_than_the_timeout_has_not_vanished(backend) {
        let reader = CollectingReader::tcp().with_receive_buffer(16 << 10).stalled();
        let relay = relay(backend).output(to(&reader).user_timeout(STALL_TIMEOUT)).start();
        reader.wait_for_sessions(1);
        fill(&relay.address());
        thread::sleep(3 * STALL_TIMEOUT);
        let sent = relay.output(0);
        reader.resume();
        eventually("it goes on", || relay.output(0).frames_sent > sent.frames_sent);
        let (ledger, _) = relay.drain_into(reader);
        assert_eq!(ledger.outputs[0].connections, 1);
    }
}

/// Sends more than the sockets of an output take.
fn fill(relay: &Address) {
    let mut writer = Peer::writer(relay);
    writer.send(&numbered::frames_of_len(0, 0..2000, 10_000));
    writer.finish();
}

/// Without its limit the relay would stay connected for a quarter of an hour.
#[track_caller]
fn expect_given_up() {
    assert!(connections_to_collector() > 0, "the connection stands");
    eventually("it is noticed", || connections_to_collector() == 0);
}

#[track_caller]
fn expect_new_connection(listener: &PeerListener) {
    listener.accept_within(Duration::from_secs(10));
}
