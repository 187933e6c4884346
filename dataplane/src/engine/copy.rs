//! Moving bytes from one engine to another, or within one.

use std::io;
use std::sync::Arc;

use super::{AlignedBuffer, Engine, Io, IoKind, CHUNK};

/// Copies `len` bytes, as if all were read before the first is written, through one buffer of at
/// most [`CHUNK`] bytes. For a pool thread. With `durable` the copy is on stable storage when it
/// ends. Both ranges are checked by the engines.
pub fn copy(
    source: &Arc<dyn Engine>,
    from: u64,
    target: &Arc<dyn Engine>,
    to: u64,
    len: u64,
    durable: bool,
) -> io::Result<()> {
    let inside = |start: u64, size: u64| start.checked_add(len).is_some_and(|end| end <= size);
    if !inside(from, source.size()) || !inside(to, target.size()) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // `len` is at most CHUNK then, which is a usize.
    let mut buffer = AlignedBuffer::zeroed(len.min(CHUNK as u64) as usize)?;
    let chunks = len.div_ceil(CHUNK as u64);
    // Upwards, the copy would run over what it has not read yet.
    let downwards = Arc::ptr_eq(source, target) && to > from;
    for step in 0..chunks {
        let chunk = if downwards { chunks - 1 - step } else { step };
        let done = chunk * CHUNK as u64;
        let part = (len - done).min(CHUNK as u64);
        let iov = [buffer.iovec(part as usize)];
        let call = |kind, offset, durable| Io {
            kind,
            offset,
            len: part,
            durable,
        };
        source.run(&call(IoKind::Read, from + done, false), &iov)?;
        target.run(&call(IoKind::Write, to + done, durable), &iov)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryEngine;
    use super::*;

    const SIZE: u64 = 4 * CHUNK as u64;

    fn engine() -> Arc<dyn Engine> {
        Arc::new(MemoryEngine::new(SIZE).unwrap())
    }

    fn access(engine: &Arc<dyn Engine>, kind: IoKind, bytes: &mut AlignedBuffer) {
        let io = Io {
            kind,
            offset: 0,
            len: SIZE,
            durable: false,
        };
        engine.run(&io, &[bytes.iovec(SIZE as usize)]).unwrap();
    }

    fn filled(engine: &Arc<dyn Engine>) -> Vec<u8> {
        let mut bytes = AlignedBuffer::zeroed(SIZE as usize).unwrap();
        for (n, byte) in bytes.iter_mut().enumerate() {
            *byte = (n % 251) as u8;
        }
        access(engine, IoKind::Write, &mut bytes);
        bytes.to_vec()
    }

    fn contents(engine: &Arc<dyn Engine>) -> Vec<u8> {
        let mut bytes = AlignedBuffer::zeroed(SIZE as usize).unwrap();
        access(engine, IoKind::Read, &mut bytes);
        bytes.to_vec()
    }

    #[test]
    fn between_engines() {
        let (source, target) = (engine(), engine());
        let bytes = filled(&source);
        let len = 2 * CHUNK as u64 + 512;
        copy(&source, 512, &target, 4096, len, true).unwrap();
        let mut expected = vec![0; SIZE as usize];
        expected[4096..][..len as usize].copy_from_slice(&bytes[512..][..len as usize]);
        assert!(contents(&target) == expected);
    }

    #[test]
    fn overlapping_ranges_are_not_smeared() {
        let len = 3 * CHUNK as u64 - 512;
        for (from, to) in [
            (0, 512),
            (512, 0),
            (0, CHUNK as u64),
            (CHUNK as u64, 0),
            (7, 7),
        ] {
            let engine = engine();
            let mut expected = filled(&engine);
            expected.copy_within(from as usize..(from + len) as usize, to as usize);
            copy(&engine, from, &engine, to, len, false).unwrap();
            assert!(contents(&engine) == expected, "{from} to {to}");
        }
    }

    #[test]
    fn nothing_to_copy() {
        let engine = engine();
        copy(&engine, SIZE, &engine, 0, 0, true).unwrap();
    }

    #[test]
    fn ranges_outside_change_nothing() {
        let (source, target) = (engine(), engine());
        filled(&source);
        for (from, to) in [(1, 0), (0, 1), (u64::MAX, 0), (0, u64::MAX)] {
            let error = copy(&source, from, &target, to, SIZE, false).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        }
        assert!(contents(&target).iter().all(|byte| *byte == 0));
    }
}
