//! The disk of a small Debian server such as stands in a town hall, and QEMU to run it: made from packages of the
//! distribution, kept in the cache.
//!
//! The disk boots by itself (partition table, GRUB, kernel, systemd) on NVMe and on virtio. Its register
//! (`protocollo.service`, port 4711) answers `entered LINE` to a line when that is on the disk, and to `all` with
//! everything and `end`; it also enters `own NUMBER` by itself. On the second serial port is a shell of root. Its
//! address is 10.0.2.15, its gateway 10.0.2.2.

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::dirs::{Dirs, create_dir};
use crate::helper;
use crate::lock::Lock;
use crate::packages::{Packages, ensure_packages};
use crate::progress::Progress;

/// The release that is installed.
const SUITE: &str = "bookworm";
/// Whose disk it is.
const UUID: &str = "5a6f1d3e-6b1c-4d0a-9f57-3a1f2c9be001";
/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Where the partition begins, in sectors; GRUB lies before it.
const BEGIN: u64 = 2048;
/// Size of the whole disk in MiB.
const MIB: u64 = 160;

/// Where root finds programs.
const PROGRAMS: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// What is installed, beside what every Debian has.
const INSTALLED: &str = "systemd-sysv,udev,linux-image-cloud-amd64,initramfs-tools";

/// What of it is left out and what of that is not: a server of 110 MB is copied in seconds, also under emulation.
const PATHS: [&str; 19] = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/lib/x86_64-linux-gnu/gconv/*",
    "path-exclude=/lib/udev/hwdb.d/*",
    "path-exclude=/lib/modules/*/kernel/*/*",
    "path-include=/lib/modules/*/kernel/arch/*",
    "path-include=/lib/modules/*/kernel/crypto/*",
    "path-include=/lib/modules/*/kernel/lib/*",
    "path-include=/lib/modules/*/kernel/fs/ext4/*",
    "path-include=/lib/modules/*/kernel/fs/jbd2/*",
    "path-include=/lib/modules/*/kernel/fs/mbcache.ko",
    "path-include=/lib/modules/*/kernel/fs/fscache/*",
    "path-include=/lib/modules/*/kernel/drivers/block/virtio_blk.ko",
    "path-include=/lib/modules/*/kernel/drivers/nvme/*",
    "path-include=/lib/modules/*/kernel/drivers/virtio/*",
    "path-include=/lib/modules/*/kernel/drivers/net/virtio_net.ko",
    "path-include=/lib/modules/*/kernel/drivers/net/net_failover.ko",
    "path-include=/lib/modules/*/kernel/net/core/*",
];

/// Both kinds of disks are in the initramfs: a server that has only the drivers of its own hardware boots nowhere else.
const BEFORE: &str = r#"
mkdir -p "$1/etc/initramfs-tools/conf.d"
printf 'MODULES=list\nCOMPRESS=gzip\n' > "$1/etc/initramfs-tools/conf.d/small"
printf 'nvme\nvirtio_pci\nvirtio_blk\next4\n' > "$1/etc/initramfs-tools/modules"
"#;

/// In the new server, when its files are there.
const AFTER: &str = r#"
cp -R --preserve=mode "$OWN/." "$1"
chroot "$1" useradd --system --home-dir /var/lib/protocollo --create-home protocollo
chroot "$1" systemctl enable protocollo.service console.service systemd-networkd.service
chroot "$1" systemctl mask systemd-networkd-wait-online.service getty-static.service getty@tty1.service
"#;

/// Modules of GRUB.
const GRUB: [&str; 7] = ["biosdisk", "part_msdos", "ext2", "linux", "search", "search_fs_uuid", "normal"];

/// Files of the server: path, mode, content.
const FILES: [(&str, u32, &str); 7] = [
    ("usr/local/bin/protocollo", 0o755, include_str!("protocollo")),
    ("usr/lib/systemd/system/protocollo.service", 0o644, include_str!("protocollo.service")),
    ("usr/lib/systemd/system/console.service", 0o644, include_str!("console.service")),
    ("etc/systemd/network/wire.network", 0o644, include_str!("wire.network")),
    ("etc/hostname", 0o644, "protocollo\n"),
    ("etc/fstab", 0o644, "UUID=@UUID@ / ext4 errors=remount-ro 0 0\n"),
    ("boot/grub/grub.cfg", 0o644, include_str!("grub.cfg")),
];

/// The disk and what runs it.
#[derive(Debug, Clone)]
pub struct Server {
    /// A raw disk image. Not to be written to: a test takes a copy of it.
    pub disk: PathBuf,
    tools: Packages,
}

impl Server {
    /// QEMU without any device but a processor and memory, emulated in software; the disk, the network and the rest
    /// are added as arguments. It ends with the thread that starts it.
    #[must_use]
    pub fn qemu(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(self.tools.tree.join("usr/bin/qemu-system-x86_64"));
        command.env("LD_LIBRARY_PATH", &self.tools.libraries);
        for place in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(self.tools.tree.join(place));
        }
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", "384"]);
        command
    }
}

/// Fetches the programs with which [`ensure_server`] makes and runs a server: QEMU, GRUB, mmdebstrap.
///
/// # Errors
/// When they cannot be fetched.
pub async fn ensure_server_tools(dirs: &Dirs, progress: &Progress) -> Result<Packages> {
    let wanted =
        ["qemu-system-x86", "qemu-system-data", "seabios", "grub-pc-bin", "grub-common", "mmdebstrap"];
    ensure_packages(dirs, "server-tools", &wanted, progress).await
}

/// Makes the disk, unless one was made by the same recipe before. Needs root.
///
/// # Errors
/// When a package cannot be fetched or installed, or the disk not be written.
pub async fn ensure_server(dirs: &Dirs, tools: Packages, progress: &Progress) -> Result<Server> {
    let root = dirs.cache.join("server");
    create_dir(&root, 0o755)?;
    let waiting = "  … another process makes the disk of the server: waiting for it";
    let _lock = Lock::acquire(&root.join(".lock"), waiting, progress).await?;
    let disk = root.join(format!("{}.img", recipe()));
    if !disk.is_file() {
        let step = progress.long_step("making the disk of a server", "about two minutes");
        let work = tempfile::Builder::new().prefix(".make-").tempdir_in(&root)?;
        let tree = work.path().join("root");
        install(&tools, work.path(), &tree).await?;
        let part = work.path().join("disk");
        write(&tools, &tree, &part).await?;
        std::fs::rename(&part, &disk)?;
        step.done("");
    }
    Ok(Server { disk, tools })
}

/// A name for everything that the disk depends on, but for the versions of its packages.
fn recipe() -> String {
    let mut all = blake3::Hasher::new();
    all.update(include_bytes!("mod.rs"));
    for (path, _, content) in FILES {
        all.update(path.as_bytes()).update(&[0]).update(content.as_bytes()).update(&[0]);
    }
    all.finalize().to_hex().as_str().chars().take(16).collect()
}

/// Installs Debian below `tree`.
async fn install(tools: &Packages, work: &Path, tree: &Path) -> Result<()> {
    let own = work.join("own");
    for (path, mode, content) in FILES {
        let path = own.join(path);
        create_dir(path.parent().context("a file needs a directory")?, 0o755)?;
        std::fs::write(&path, content.replace("@UUID@", UUID))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    }
    let mut command = Command::new(tools.tree.join("usr/bin/mmdebstrap"));
    // It calls a program of its own, and those of root in the new server.
    let path = format!("{}:{PROGRAMS}", tools.tree.join("usr/bin").display());
    command.env("PATH", path).env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive").current_dir(work);
    command.args(["--mode=root", "--variant=essential", "--architectures=amd64", "--format=directory"]);
    command.arg(format!("--include={INSTALLED}"));
    command.arg("--aptopt=APT::Install-Recommends \"false\"");
    // Without this the tool that merges /usr brings all of Perl with it.
    command.arg("--hook-dir").arg(tools.tree.join("usr/share/mmdebstrap/hooks/maybe-merged-usr"));
    command.args(PATHS.map(|path| format!("--dpkgopt={path}")));
    command.env("OWN", &own);
    command.arg(format!("--essential-hook=set -e{BEFORE}"));
    command.arg(format!("--customize-hook=set -e{AFTER}"));
    command.arg(SUITE).arg(tree);
    helper::run(command, "install a small Debian").await?;
    Ok(())
}

/// Writes the disk: GRUB, the table of partitions, the file system with what is below `tree`.
async fn write(tools: &Packages, tree: &Path, disk: &Path) -> Result<()> {
    let file = File::create_new(disk)?;
    file.set_len(MIB << 20)?;
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.env("PATH", PROGRAMS).args(["-q", "-F", "-U", UUID, "-m", "0", "-N", "16384"]);
    // What GRUB cannot read.
    mkfs.args(["-O", "^metadata_csum_seed"]);
    mkfs.args(["-E", &format!("offset={}", BEGIN * SECTOR)]).arg("-d").arg(tree).arg(disk);
    mkfs.arg(format!("{}k", ((MIB << 20) - BEGIN * SECTOR) >> 10));
    helper::run(mkfs, "make the file system of a server").await?;

    let modules = tools.tree.join("usr/lib/grub/i386-pc");
    let core = disk.with_extension("core");
    let mut mkimage = Command::new(tools.tree.join("usr/bin/grub-mkimage"));
    mkimage.env("LD_LIBRARY_PATH", &tools.libraries).args(["-O", "i386-pc", "-p", "(hd0,msdos1)/boot/grub"]);
    mkimage.arg("-d").arg(&modules).arg("-o").arg(&core).args(GRUB);
    helper::run(mkimage, "make the boot loader of a server").await?;
    let core = std::fs::read(core)?;
    ensure!(core.len() as u64 <= (BEGIN - 1) * SECTOR, "GRUB does not fit before the partition");
    // Its first part looks for the second in the sector after its own, where nothing else is said.
    let mut first = std::fs::read(modules.join("boot.img"))?;
    first.truncate(446);
    first.resize(446, 0);
    first.extend(partition(u32::try_from(BEGIN)?, u32::try_from((MIB << 20) / SECTOR - BEGIN)?));
    first.resize(510, 0);
    first.extend([0x55, 0xaa]);
    file.write_all_at(&first, 0)?;
    file.write_all_at(&core, SECTOR)?;
    file.sync_all()?;
    Ok(())
}

/// An entry of the table of partitions: active, Linux, found by the number of its sector.
fn partition(begin: u32, sectors: u32) -> Vec<u8> {
    let far = [0xfe, 0xff, 0xff];
    let mut entry = vec![0x80];
    entry.extend(far);
    entry.push(0x83);
    entry.extend(far);
    entry.extend(begin.to_le_bytes());
    entry.extend(sectors.to_le_bytes());
    entry
}
