//! `gofs-fuse`, also `mount.fuse.gofs`.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    gofs_fuse::daemon::main()
}
