//! What the fuzzers of the spool run: files and folders, whatever is in them.

use std::time::Instant;

use tapster::protocol::ContentType;
use tapster::protocol::FrameBatch;
use tapster::spool::Content;
use tapster::spool::Contents;
use tapster::spool::CursorSlot;
use tapster::spool::Flaw;
use tapster::spool::Found;
use tapster::spool::Inspected;
use tapster::spool::Moment;
use tapster::spool::Part;
use tapster::spool::SEGMENT_HEADER_LEN;
use tapster::spool::SegmentItems;
use tapster::spool::SimFolder;
use tapster::spool::Spool;
use tapster::spool::SpoolConfig;
use tapster::spool::inspect;

/// A cursor file: what decodes is what was encoded.
pub(crate) fn cursor(input: &[u8]) {
    if let Some(slot) = CursorSlot::newest(input) {
        assert_eq!(CursorSlot::decode(&slot.encode()), Some(slot));
    }
}

/// A segment file, with the header of the input or, where that is damaged, by the number in its name: a scan passes each
/// byte once, and ends.
pub(crate) fn segment(input: &[u8]) {
    let folder = SimFolder::new();
    folder.put(FIRST, input.to_vec());
    let items = SegmentItems::open(&folder, FIRST).expect("nothing fails");
    let mut passed = SEGMENT_HEADER_LEN as u64;
    for item in items {
        passed += match item.expect("nothing fails") {
            Found::Record(header, payload) => {
                assert_eq!(payload.len() as u64 + 40, header.record_len());
                header.record_len()
            }
            Found::Damage { len } => {
                assert!(len > 0);
                len
            }
        };
    }
    assert_eq!(passed, (input.len() as u64).max(SEGMENT_HEADER_LEN as u64));
}

/// A sound folder, and edits of it in groups of five bytes: which file, what is done, where, with what. It is looked at,
/// opens if the look says so, gives the frames that the look found, balances, takes more, and opens again.
pub(crate) fn folder(input: &[u8]) {
    let folder = sound_folder();
    for edit in input.chunks_exact(5).take(64) {
        let (file, action, at, value) = (edit[0], edit[1], u16::from_be_bytes([edit[2], edit[3]]), edit[4]);
        let names = folder.names();
        let name = &names[usize::from(file) % names.len()];
        let mut bytes = folder.content(name).expect("a file");
        let at = usize::from(at) % (bytes.len() + 1);
        if action >= 240 {
            // A cursor that goes too far, and is sound.
            forge_cursor(&folder, value);
            continue;
        }
        match action % 6 {
            0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= value),
            1 => bytes.truncate(at),
            2 => bytes.iter_mut().skip(at).take(usize::from(value)).for_each(|byte| *byte = 0),
            3 => bytes.extend(std::iter::repeat_n(value, at)),
            // A copy under another name.
            4 => folder.put(&format!("seg-{value:016x}.fsr"), bytes.clone()),
            // The end of another place in front of the rest: a block that was swapped.
            _ => bytes.rotate_left(at),
        }
        folder.put(name, bytes);
    }
    let (looked, missed) = look(&folder);
    // A number that was damaged may look like that of a later version.
    let refused = inspect(&folder).expect("nothing fails").refusal(Some(&ContentType::DNSTAP)).is_some();
    for round in 0..2 {
        let now = Moment { instant: Instant::now(), unix: 1_700_000_000_000_000_000 };
        let opened = Spool::open_in(folder.clone(), config(), Some(ContentType::DNSTAP), now);
        assert_eq!(opened.is_err(), refused, "a look says whether it opens");
        let Ok((mut spool, report)) = opened else { return };
        let drain = |spool: &mut Spool<SimFolder>| {
            let mut frames = 0;
            while let Some((batch, position)) = spool.next(now).expect("nothing fails") {
                batch.payloads().for_each(|payload| assert!(payload.starts_with(b"frame "), "{payload:?}"));
                frames += spool.acknowledge(position.after(batch.frames()), now);
            }
            frames
        };
        let mut frames = drain(&mut spool);
        let mut lost = lost_by(&mut spool);
        if round == 0 {
            assert_eq!((frames, lost), (looked, missed), "frames and losses, of which a look found these");
        }
        spool.append(&[batch(round)], now).expect("nothing fails");
        frames += drain(&mut spool);
        lost += lost_by(&mut spool);
        assert_eq!((frames + lost, spool.frames()), (report.frames + FRAMES, 0));
        spool.close(now).expect("nothing fails");
    }
}

/// A folder of any content. Each file is a name, in one byte, what it begins with, in one byte, a length in two bytes, and
/// as many bytes.
///
/// Looking changes nothing, and tells whether the spool opens, which frames come out, and how many are lost. What is appended to it comes
/// out; then it opens again.
pub(crate) fn any_folder(input: &[u8]) {
    let folder = folder_of(input);
    let before: Vec<_> = folder.names().iter().map(|name| folder.content(name)).collect();
    let frames_max = folder.bytes() / FRAME_LEN_MIN;
    let now = Moment { instant: Instant::now(), unix: 1_700_000_000_000_000_000 };
    let inspected = inspect(&folder).expect("nothing fails");
    let looked = [Part::Waiting, Part::Segments, Part::All].map(|part| {
        let (frames, missed) = contents(&folder, &inspected, part, now, |_| {});
        assert!(frames <= frames_max, "{frames} frames in {} bytes", folder.bytes());
        (frames, missed)
    });
    let refusal = inspected.refusal(Some(&ContentType::DNSTAP));
    assert!(before.iter().eq(&folder.names().iter().map(|name| folder.content(name)).collect::<Vec<_>>()));
    for round in 0..2 {
        let opened = Spool::open_in(folder.clone(), config(), Some(ContentType::DNSTAP), now);
        assert_eq!(opened.is_err(), refusal.is_some(), "a look says whether it opens");
        let Ok((mut spool, _)) = opened else { return };
        let mut frames = drain(&mut spool, now);
        let lost = lost_by(&mut spool);
        if round == 0 {
            assert_eq!((frames, lost), looked[0], "frames and losses, of which a look found these");
        }
        if spool.append(&[batch(round)], now).is_ok() {
            frames = drain(&mut spool, now);
            assert!(frames >= FRAMES, "what is appended comes out");
        }
        let _ = spool.close(now);
    }
}

/// Takes everything out, and counts it.
fn drain(spool: &mut Spool<SimFolder>, now: Moment) -> u64 {
    let mut frames = 0;
    while let Ok(Some((batch, position))) = spool.next(now) {
        frames += u64::from(batch.frames());
        spool.acknowledge(position.after(batch.frames()), now);
    }
    frames
}

fn folder_of(mut input: &[u8]) -> SimFolder {
    let sound = sound_folder();
    let names = sound.names();
    let folder = SimFolder::new();
    for _ in 0..16 {
        let Some(([name, begin, high, low], rest)) = input.split_first_chunk() else { break };
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (bytes, rest) = rest.split_at(len);
        input = rest;
        let name = match name {
            0..=7 => format!("seg-{:016x}.fsr", *name),
            8 => "seg-ffffffffffffffff.fsr".to_owned(),
            9..=15 => "cursor".to_owned(),
            16..=19 => format!("seg-{:016x}.fsr.bad", name - 16),
            other => format!("other-{other}"),
        };
        // A sound file in front, or under, what the input says.
        let mut content = match begin {
            0..=127 => Vec::new(),
            _ => sound.content(&names[usize::from(*begin) % names.len()]).expect("a file"),
        };
        match begin % 4 {
            0 => content.extend(bytes),
            _ => {
                let at = usize::from(*begin) % (content.len() + 1);
                content.truncate(content.len().max(at));
                let over = bytes.len().min(content.len() - at);
                content[at..at + over].copy_from_slice(&bytes[..over]);
                content.extend(&bytes[over..]);
            }
        }
        folder.put(&name, content);
    }
    folder
}

/// Whatever is looked at, only frames are found that were put in, and nothing is changed. Returns how many wait, and how many are
/// missing of those.
fn look(folder: &SimFolder) -> (u64, u64) {
    let now = Moment { instant: Instant::now(), unix: 1_700_000_000_000_000_000 };
    let before: Vec<_> = folder.names().iter().map(|name| folder.content(name)).collect();
    let inspected = inspect(folder).expect("nothing fails");
    let check = |batch: &FrameBatch| {
        batch.payloads().for_each(|payload| assert!(payload.starts_with(b"frame "), "{payload:?}"));
    };
    let waiting = contents(folder, &inspected, Part::Waiting, now, check);
    contents(folder, &inspected, Part::Segments, now, check);
    contents(folder, &inspected, Part::All, now, check);
    assert!(before.iter().eq(&folder.names().iter().map(|name| folder.content(name)).collect::<Vec<_>>()));
    waiting
}

/// Counts the frames that a look finds, and those that it misses.
fn contents(
    folder: &SimFolder,
    inspected: &Inspected,
    part: Part,
    now: Moment,
    check: impl Fn(&FrameBatch),
) -> (u64, u64) {
    let (mut frames, mut missed) = (0, 0);
    for content in Contents::new(folder, inspected, part, now) {
        match content {
            Content::Batch(header, batch) => {
                assert_eq!(header.frames, batch.frames());
                check(&batch);
                frames += u64::from(batch.frames());
            }
            Content::Flaw(flaw) => {
                assert!(!flaw.to_string().chars().any(char::is_control));
                if let Flaw::Missing { frames, .. } = flaw {
                    missed += frames;
                }
            }
        }
    }
    (frames, missed)
}

fn lost_by(spool: &mut Spool<SimFolder>) -> u64 {
    std::iter::from_fn(|| spool.poll_loss()).map(|(_, frames)| frames).sum()
}

/// Moves the cursor on by `frames` frames.
fn forge_cursor(folder: &SimFolder, frames: u8) {
    let Some(mut cursor) = folder.content("cursor") else { return };
    let Some(newest) = CursorSlot::newest(&cursor) else { return };
    let position = newest.position.after(u32::from(frames));
    let forged = CursorSlot { generation: newest.generation.saturating_add(1), position, ..newest };
    cursor.splice(..CursorSlot::LEN.min(cursor.len()), forged.encode());
    folder.put("cursor", cursor);
}

/// Two closed segments and a cursor within a record.
fn sound_folder() -> SimFolder {
    let now = Moment { instant: Instant::now(), unix: 1_700_000_000_000_000_000 };
    let folder = SimFolder::new();
    for _ in 0..2 {
        let (mut spool, _) =
            Spool::open_in(folder.clone(), config(), Some(ContentType::DNSTAP), now).expect("it opens");
        for number in 0..3 {
            spool.append(&[batch(number)], now).expect("nothing fails");
        }
        let (_, first) = spool.next(now).expect("nothing fails").expect("what was appended");
        spool.acknowledge(first.after(1), now);
        spool.close(now).expect("nothing fails");
    }
    folder
}

fn batch(number: u64) -> FrameBatch {
    let payloads = (0..FRAMES).map(|frame| format!("frame {frame} of batch {number}"));
    FrameBatch::from_payloads(payloads, Instant::now()).expect("short payloads")
}

fn config() -> SpoolConfig {
    SpoolConfig { max: 1 << 20, min_free: 0, ..SpoolConfig::default() }
}

const FIRST: &str = "seg-0000000000000001.fsr";
const FRAMES: u64 = 4;
/// A length word and a byte.
const FRAME_LEN_MIN: u64 = 5;
