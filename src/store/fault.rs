//! Reading on when the file under a map is gone: SIGBUS becomes zeros, and a count.
//!
//! Touching a mapped page that the file no longer backs (somebody cut the file, the medium cannot read it) raises SIGBUS,
//! which ends a process that does not handle it. Here a handler lays zeros over what is missing, counts, and lets the read
//! go on. Zeros are no entry: a record of zeros is a free slot, and a row of zeros fails its record's checksum.
//!
//! ```text
//! reader                                handler, on the thread that touched the page
//! ──────                                ────────────────────────────────────────────
//! before = faults()                     find the region; none of ours: as if we were not here
//! read, check, show        ─ SIGBUS ─►  begun += 1
//! after = faults()         ◄─────────   zeros over the page, or over all that lies behind the file's end
//! differ: forget what was shown         ended += 1
//! ```
//!
//! Promises: while a [`Guarded`] lives, reading it does not end the process. Two equal [`Guarded::faults`] with reads
//! between them mean that no fault came into these reads, on this thread or another. Once there has been one, nothing
//! that was known of the bytes before holds any more (a checksum that was right may now cover zeros), so from then on each
//! read has to be checked; [`Guarded::restore`] shows the file again, and changes nothing about that.
//!
//! Never: a lock, an allocation or a formatted message in the handler; a SIGBUS from elsewhere swallowed: it goes to the
//! handler that was there before us, or ends the process as it would have.
//!
//! What it cannot see: a file that was cut and lengthened again between two reads, or cut within its last page, reads as
//! zeros without a fault. Checksums find it, not this.
#![expect(
    unsafe_code,
    reason = "handling a signal and mapping over a map are system calls; each says what keeps it sound"
)]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, OnceLock, PoisonError};

use libc::{c_int, c_void, siginfo_t};
use memmap2::Mmap;

/// The most maps guarded at a time in a process: one a store, so far more than there ever are.
const REGIONS_MAX: usize = 1024;
/// Single pages laid over a region before larger pieces are: each piece is a mapping of its own, and a process may have
/// about 65,000.
const SINGLE_PAGES_MAX: u32 = 4096;
/// The larger pieces; also the size of a huge page on the machines that have them.
const PIECE_BYTES: usize = 2 << 20;

/// A map of a file, readable whatever happens to the file.
pub(super) struct Guarded {
    // Dropped in this order: the handler forgets the region, then the map goes, then the file.
    region: Registration,
    map: Mmap,
    file: File,
}

impl Guarded {
    /// Guards a map of `file` that begins at the file's first byte.
    ///
    /// # Errors
    /// When the file's descriptor cannot be copied, the system takes no handler, or 1,024 maps are guarded already.
    pub(super) fn new(map: Mmap, file: &File) -> io::Result<Self> {
        install()?;
        let file = file.try_clone()?;
        let region = Registration::new(&map, &file)?;
        Ok(Self { region, map, file })
    }

    /// The map, for advice about it.
    pub(super) fn map(&self) -> &Mmap {
        &self.map
    }

    /// Pages found missing so far, as a number that only grows. To be asked before and after each batch of reads.
    ///
    /// Touches the last page itself, so that a file that was cut anywhere before it is noticed by the next batch, whatever
    /// that reads. Costs two loads that are in the nearest cache.
    #[inline]
    pub(super) fn faults(&self) -> u64 {
        if let Some(last) = self.map.last() {
            // SAFETY: a reference is readable; volatile because it is read for what it does, not for what it says.
            let _ = unsafe { ptr::from_ref(last).read_volatile() };
        }
        // Reads before this call stay before it, and with the acquiring load, those after it stay after.
        fence(Ordering::Acquire);
        let faults = self.region.0.faults.load(Ordering::Acquire);
        if begun(faults) == ended(faults) { u64::from(begun(faults)) } else { self.faults_settled() }
    }

    /// Whether there was any so far, as one load. Says nothing about reads that are under way: [`Self::faults`] does.
    #[inline]
    pub(super) fn has_faulted(&self) -> bool {
        self.region.0.faults.load(Ordering::Relaxed) != 0
    }

    /// Waits for a fault that another thread is in the middle of: its zeros may be half there. One system call long.
    #[cold]
    fn faults_settled(&self) -> u64 {
        loop {
            let faults = self.region.0.faults.load(Ordering::Acquire);
            if begun(faults) == ended(faults) {
                return u64::from(begun(faults));
            }
            std::thread::yield_now();
        }
    }

    /// Shows the file again in place of the zeros, after its length was made right. Not a fault: since the first, whoever
    /// reads checks what is there.
    ///
    /// # Errors
    /// When the file is shorter than the map, or the system refuses.
    pub(super) fn restore(&self) -> io::Result<()> {
        let len = self.map.len();
        if self.file.metadata()?.len() < len as u64 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is still too short"));
        }
        // SAFETY: the range is this map's own, which lives as long as `self`; what is put there is what was there: the
        // same file, shared, readable. A reader sees zeros or the file, and has checked which.
        let mapped = unsafe {
            libc::mmap(
                self.map.as_ptr().cast_mut().cast(),
                len,
                libc::PROT_READ,
                libc::MAP_SHARED | libc::MAP_FIXED,
                self.file.as_raw_fd(),
                0,
            )
        };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Deref for Guarded {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// What the handler knows of one map, in a place that is never freed: a handler may always look.
#[repr(align(64))]
struct Region {
    /// Odd while the three numbers behind it change; see [`Region::contains`].
    version: AtomicU64,
    base: AtomicUsize,
    /// Bytes from the base to the end of the last page; 0 for a place that nobody has.
    len: AtomicUsize,
    descriptor: AtomicI32,
    /// Faults begun in the upper half, faults ended in the lower.
    faults: AtomicU64,
}

const ONE_BEGUN: u64 = 1 << 32;
const ONE_ENDED: u64 = 1;

fn begun(faults: u64) -> u32 {
    (faults >> 32) as u32
}

fn ended(faults: u64) -> u32 {
    faults as u32
}

impl Region {
    const fn new() -> Self {
        Self {
            version: AtomicU64::new(0),
            base: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            descriptor: AtomicI32::new(-1),
            faults: AtomicU64::new(0),
        }
    }

    /// Base and length, if the address lies within. A place that is just being changed does not count: the region of a
    /// thread that is reading it stands still.
    fn contains(&self, address: usize) -> Option<(usize, usize)> {
        let version = self.version.load(Ordering::Acquire);
        let (base, len) = (self.base.load(Ordering::Relaxed), self.len.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let whole = version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        (whole && address.wrapping_sub(base) < len).then_some((base, len))
    }

    /// Changes base, length and descriptor. One at a time: the caller holds `REGISTRATIONS`.
    fn set(&self, base: usize, len: usize, descriptor: c_int) {
        self.version.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.base.store(base, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.descriptor.store(descriptor, Ordering::Relaxed);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Lays zeros over the page of a fault, or over more. Answers whether the read can go on.
    fn cover(&self, address: usize, base: usize, len: usize) -> bool {
        let number = begun(self.faults.fetch_add(ONE_BEGUN, Ordering::AcqRel));
        let page = page_bytes();
        let place = (address - base) / page * page;
        let end = match file_bytes(self.descriptor.load(Ordering::Relaxed)) {
            // Cut: all that lies behind the new end is gone, and will not be noticed page by page.
            Some(file) if file <= place => len,
            _ if number < SINGLE_PAGES_MAX => place + page,
            _ => place + PIECE_BYTES,
        };
        // A file system of huge pages takes no less than one, and no other places than theirs; and a process that has
        // all the mappings it may have takes one that needs no more.
        let piece = place / PIECE_BYTES * PIECE_BYTES;
        let covered = [(place, end), (piece, end.max(piece + PIECE_BYTES)), (0, len)]
            .into_iter()
            .any(|(from, to)| lay_zeros(base + from, to.min(len) - from));
        self.faults.fetch_add(ONE_ENDED, Ordering::AcqRel);
        covered
    }
}

static REGIONS: [Region; REGIONS_MAX] = [const { Region::new() }; REGIONS_MAX];
/// Held while places are taken and given back. The handler never waits for it.
static REGISTRATIONS: Mutex<()> = Mutex::new(());

/// A place among the regions, given back when dropped.
struct Registration(&'static Region);

impl Registration {
    fn new(map: &Mmap, file: &File) -> io::Result<Self> {
        let _held = REGISTRATIONS.lock().unwrap_or_else(PoisonError::into_inner);
        let free = REGIONS.iter().find(|region| region.len.load(Ordering::Relaxed) == 0);
        let region = free.ok_or_else(|| io::Error::other("too many files are mapped in this process"))?;
        region.faults.store(0, Ordering::Relaxed);
        region.set(map.as_ptr() as usize, map.len().next_multiple_of(page_bytes()), file.as_raw_fd());
        Ok(Self(region))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let _held = REGISTRATIONS.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.set(0, 0, -1);
    }
}

/// What handled SIGBUS before us: Rust's own handler, the caller's, or nobody.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Makes `on_sigbus` this process's handler, once.
fn install() -> io::Result<()> {
    let _held = REGISTRATIONS.lock().unwrap_or_else(PoisonError::into_inner);
    if BEFORE.get().is_some() {
        return Ok(());
    }
    page_bytes();
    // SAFETY: all zeros is a valid `sigaction` (no handler, no flags, an empty mask).
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: only asks; the pointer is to a local.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Set before our handler can run, for it reads this.
    BEFORE.get_or_init(|| before);
    // SAFETY: as above.
    let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_sigbus;
    ours.sa_sigaction = handler as usize;
    // On the alternate stack where there is one: the handler before us may be there for stacks that have overflowed.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and does only what a signal handler may.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const ours, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The handler. Atomics, `fstat`, `mmap`, `sigaction` and `raise` alone: all safe within a signal on the systems we build
/// for (`mmap` is not on POSIX's list, but is one system call without a lock of the C library's that a reader could hold).
extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let errno = errno();
    // SAFETY: the kernel hands a valid `siginfo_t` to a handler with SA_SIGINFO.
    let code = unsafe { (*info).si_code };
    if is_missing_page(code) {
        // SAFETY: as above; for the codes of a fault, the address is the field that is set.
        let address = unsafe { (*info).si_addr() } as usize;
        let covered = REGIONS
            .iter()
            .find_map(|region| region.contains(address).map(|(base, len)| region.cover(address, base, len)));
        if covered == Some(true) {
            set_errno(errno);
            return;
        }
    }
    pass_on(signal, info, context);
}

/// A page without a file behind it, or one that the memory has lost; not a misaligned access, not a signal somebody sent.
fn is_missing_page(code: c_int) -> bool {
    #[cfg(target_os = "linux")]
    return code == libc::BUS_ADRERR || code == libc::BUS_MCEERR_AR;
    #[cfg(not(target_os = "linux"))]
    return code == libc::BUS_ADRERR;
}

/// Does with a signal that is not ours what would have been done without us.
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let before = BEFORE.get();
    match before.map_or(libc::SIG_DFL, |before| before.sa_sigaction) {
        // SAFETY: `info` is the kernel's. A sent signal (code 0 or below) may be ignored; a fault never is.
        libc::SIG_IGN if unsafe { (*info).si_code } <= 0 => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: all zeros is the default action. Raised again now, the signal waits until this handler returns,
            // and then ends the process as it would have.
            unsafe {
                let default: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, &raw const default, ptr::null_mut());
                libc::raise(signal);
            }
        }
        handler => {
            let takes_info = before.is_some_and(|before| before.sa_flags & libc::SA_SIGINFO != 0);
            if takes_info {
                // SAFETY: somebody gave the system this address as a handler of three arguments.
                let handler =
                    unsafe { std::mem::transmute::<usize, extern "C" fn(c_int, *mut siginfo_t, *mut c_void)>(handler) };
                handler(signal, info, context);
            } else {
                // SAFETY: somebody gave the system this address as a handler of one argument.
                let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(handler) };
                handler(signal);
            }
        }
    }
}

/// Puts zeros where a region has a file, by laying an anonymous map over it. Reading them takes no memory: the kernel has
/// one page of zeros for all.
fn lay_zeros(from: usize, len: usize) -> bool {
    // SAFETY: only `Region::cover` calls this, with whole pages within a region that a thread is reading: so its map is
    // there, belongs to a `Guarded`, and is only ever read. Every bit pattern is valid in it.
    let mapped = unsafe {
        libc::mmap(
            ptr::with_exposed_provenance_mut(from),
            len,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}

/// The present length of a file.
fn file_bytes(descriptor: c_int) -> Option<usize> {
    // SAFETY: all zeros is a valid `stat`.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a local; a descriptor that is not open is an error, nothing worse.
    let answered = unsafe { libc::fstat(descriptor, &raw mut stat) } == 0;
    answered.then(|| usize::try_from(stat.st_size).unwrap_or(0))
}

/// The system's page size. First called before the handler is there, which then only loads it.
fn page_bytes() -> usize {
    static PAGE_BYTES: AtomicUsize = AtomicUsize::new(0);
    match PAGE_BYTES.load(Ordering::Relaxed) {
        0 => {
            // SAFETY: asks for a number.
            let bytes = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
            PAGE_BYTES.store(bytes, Ordering::Relaxed);
            bytes
        }
        bytes => bytes,
    }
}

fn errno_place() -> *mut c_int {
    // SAFETY: answers the thread's own place for it.
    #[cfg(target_os = "linux")]
    return unsafe { libc::__errno_location() };
    // SAFETY: as above.
    #[cfg(not(target_os = "linux"))]
    return unsafe { libc::__error() };
}

fn errno() -> c_int {
    // SAFETY: the thread's own place, always there.
    unsafe { *errno_place() }
}

fn set_errno(errno: c_int) {
    // SAFETY: as above.
    unsafe { *errno_place() = errno }
}

#[cfg(test)]
mod tests {
    //! A SIGBUS that is not survived ends the process, so each test runs its scene in a child: itself, started again.

    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Output};
    use std::sync::atomic::AtomicBool;

    use super::*;

    const SCENE: &str = "VECMEMO_TEST_FAULT_SCENE";
    const BYTES: usize = 8 << 20;

    /// Runs the test named so again in a child, in which this answers `None`.
    fn in_child(test: &str) -> Option<Output> {
        if std::env::var_os(SCENE).is_some() {
            return None;
        }
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args([&format!("store::fault::tests::{test}"), "--exact", "--nocapture", "--test-threads=1"]);
        Some(child.env(SCENE, "1").output().unwrap())
    }

    fn assert_survived(output: &Output) {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && out.contains("1 passed"), "{}\n{out}\n{err}", output.status);
    }

    fn map(file: &File) -> Mmap {
        // SAFETY: nobody but the test changes the file, and it reads bytes.
        unsafe { Mmap::map(file).unwrap() }
    }

    fn full_file() -> File {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &vec![0xab; BYTES]).unwrap();
        file
    }

    /// Where the bytes stop being what was written. Volatile, for they change.
    fn written(bytes: &[u8]) -> usize {
        let value = |place: usize| unsafe { bytes.as_ptr().add(place).read_volatile() };
        let written = (0..bytes.len()).take_while(|&place| value(place) == 0xab).count();
        assert!((written..bytes.len()).all(|place| value(place) == 0), "zeros follow");
        written
    }

    #[test]
    fn a_file_cut_under_the_map_reads_as_zeros_and_is_counted() {
        if let Some(output) = in_child("a_file_cut_under_the_map_reads_as_zeros_and_is_counted") {
            return assert_survived(&output);
        }
        for end in [BYTES - 4096, BYTES / 2 + 100, 5000, 4096, 1, 0] {
            let file = full_file();
            let guarded = Guarded::new(map(&file), &file).unwrap();
            assert_eq!((guarded.faults(), written(&guarded), guarded.faults()), (0, BYTES, 0));
            file.set_len(end as u64).unwrap();
            let faults = guarded.faults();
            assert_eq!(faults, 1, "it is noticed without reading what is gone");
            assert_eq!(written(&guarded), end);
            assert!((1..=2).contains(&guarded.faults()), "all of the end is laid over at once");

            assert!(guarded.restore().is_err(), "still too short");
            file.set_len(BYTES as u64).unwrap();
            guarded.restore().unwrap();
            let faults = guarded.faults();
            std::os::unix::fs::FileExt::write_all_at(&file, &[0xab; BYTES], 0).unwrap();
            assert_eq!((written(&guarded), guarded.faults()), (BYTES, faults), "the file is seen again");
            file.set_len(0).unwrap();
            assert_eq!(written(&guarded), 0, "and guarded still");
        }
    }

    #[test]
    fn readers_are_told_of_every_zero_that_another_thread_laid() {
        if let Some(output) = in_child("readers_are_told_of_every_zero_that_another_thread_laid") {
            return assert_survived(&output);
        }
        for round in 0..30 {
            let file = full_file();
            let guarded = Guarded::new(map(&file), &file).unwrap();
            let cut = AtomicBool::new(false);
            let pages = BYTES / page_bytes();
            std::thread::scope(|scope| {
                for reader in 0..4_usize {
                    let (guarded, cut) = (&guarded, &cut);
                    scope.spawn(move || {
                        let mut torn_seen = false;
                        for turn in 0_usize.. {
                            let before = guarded.faults();
                            let page = (turn * 7 + reader * 131) % pages;
                            let value = |place: usize| unsafe { guarded.as_ptr().add(place).read_volatile() };
                            let first = value(page * page_bytes());
                            let last = value(page * page_bytes() + page_bytes() - 1);
                            let torn = guarded.faults() != before;
                            torn_seen |= torn || before > 0;
                            assert!(torn_seen || (first, last) == (0xab, 0xab), "round {round}: zeros without a word");
                            if cut.load(Ordering::Relaxed) && turn > 2 * pages {
                                break;
                            }
                        }
                    });
                }
                std::thread::yield_now();
                file.set_len(round * 1000).unwrap();
                cut.store(true, Ordering::Relaxed);
            });
            assert!(guarded.faults() > 0);
        }
    }

    #[test]
    fn more_holes_than_a_process_may_have_mappings_are_survived() {
        if let Some(output) = in_child("more_holes_than_a_process_may_have_mappings_are_survived") {
            return assert_survived(&output);
        }
        // Missing pages in the middle of a file are what a medium that cannot read makes. Here the file is short, and
        // the handler is kept from knowing it.
        let file = tempfile::tempfile().unwrap();
        let bytes = 300_000 * 4096;
        file.set_len(bytes).unwrap();
        let guarded = Guarded::new(map(&file), &file).unwrap();
        guarded.region.0.descriptor.store(-1, Ordering::Relaxed);
        file.set_len(0).unwrap();
        let value = |place: usize| unsafe { guarded.as_ptr().add(place).read_volatile() };
        assert!((0..bytes as usize).step_by(2 * 4096).all(|place| value(place) == 0));
        assert!(guarded.faults() >= u64::from(SINGLE_PAGES_MAX));
    }

    #[test]
    fn a_sigbus_elsewhere_ends_the_process_as_ever() {
        if let Some(output) = in_child("a_sigbus_elsewhere_ends_the_process_as_ever") {
            assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
            return;
        }
        let (ours, other) = (full_file(), full_file());
        let _guarded = Guarded::new(map(&ours), &ours).unwrap();
        let stranger = map(&other);
        other.set_len(0).unwrap();
        written(&stranger);
    }

    #[test]
    fn a_region_given_back_is_guarded_no_more() {
        if let Some(output) = in_child("a_region_given_back_is_guarded_no_more") {
            assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
            return;
        }
        let file = full_file();
        drop(Guarded::new(map(&file), &file).unwrap());
        // The system gives the place just freed to the next map of this size.
        let stranger = map(&file);
        file.set_len(0).unwrap();
        written(&stranger);
    }

    #[test]
    fn a_sigbus_that_was_sent_ends_the_process_as_ever() {
        if let Some(output) = in_child("a_sigbus_that_was_sent_ends_the_process_as_ever") {
            assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
            return;
        }
        // SAFETY: takes out the handler of Rust's library, which lets the first signal that is sent pass by.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        let file = full_file();
        let _guarded = Guarded::new(map(&file), &file).unwrap();
        // SAFETY: a signal to ourselves.
        unsafe { libc::raise(libc::SIGBUS) };
    }

    #[test]
    fn the_handler_that_was_there_before_gets_what_is_not_ours() {
        if let Some(output) = in_child("the_handler_that_was_there_before_gets_what_is_not_ours") {
            assert_eq!(output.status.code(), Some(77), "{output:?}");
            return;
        }
        extern "C" fn handler(_: c_int) {
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(77) }
        }
        let handler: extern "C" fn(c_int) = handler;
        // SAFETY: the handler only ends the process.
        unsafe { libc::signal(libc::SIGBUS, handler as usize) };
        let (ours, other) = (full_file(), full_file());
        let guarded = Guarded::new(map(&ours), &ours).unwrap();
        ours.set_len(0).unwrap();
        assert_eq!(written(&guarded), 0);
        let stranger = map(&other);
        other.set_len(0).unwrap();
        written(&stranger);
    }

    #[test]
    fn places_are_given_back_and_bounded() {
        if let Some(output) = in_child("places_are_given_back_and_bounded") {
            return assert_survived(&output);
        }
        let file = full_file();
        for _ in 0..2 {
            let mut held = Vec::new();
            let refused = loop {
                match Guarded::new(map(&file), &file) {
                    Ok(guarded) => held.push(guarded),
                    Err(error) => break error,
                }
                assert!(held.len() <= REGIONS_MAX);
            };
            // Descriptors may run out before places do.
            assert!(held.len() > 100, "{refused}");
        }
    }
}
