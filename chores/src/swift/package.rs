//! The checks, one after the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Workshop, visible, without_warnings};
use crate::cargo;

const STRICT: [&str; 2] = ["-Xswiftc", "-warnings-as-errors"];

/// The questions of AnswerTests.swift, whose answers are compared with those of the C example.
const QUESTIONS: [&str; 3] = [
    "Describe the picture.",
    "What is at the top right?",
    "What is left of it?",
];

/// The question and answer of every example.
const QUESTION: &str = "What is written?";
const ANSWER: &str = "The word FISH.";

const APP: &str = "swift/Examples/PictureChat";
const CATALOGUE: &str = "swift/Sources/MoxinVLM/MoxinVLM.docc";

/// Sources that need Apple's frameworks, and those that are only observable with them.
const VIEWS: &str = "swift/Examples/PictureChat/Sources/PictureChat";
const OBSERVABLE: [&str; 2] = [
    "swift/Sources/MoxinVLM/VLMChat.swift",
    "swift/Examples/PictureChat/Sources/PictureChatLogic/PictureChat.swift",
];

impl Workshop {
    /// Builds and tests the package.
    pub fn package(&self) -> Result<()> {
        let answers = self.c_answers()?;
        without_warnings(
            self.swift("build", &self.repository)
                .arg("--build-tests")
                .args(STRICT),
        )?;
        let mut test = self.swift("test", &self.repository);
        visible(
            test.args(["--skip-build", "--disable-xctest"])
                .args(STRICT)
                .env("MOXIN_C_ANSWERS", answers),
        )
    }

    /// Writes the C example's answers to a file.
    fn c_answers(&self) -> Result<PathBuf> {
        let program = self.folder.join("describe");
        let lib = self.prefix.join("lib");
        let mut compile = Command::new(std::env::var_os("CC").unwrap_or("cc".into()));
        compile
            .arg(self.repository.join("examples/c/describe.c"))
            .arg("-I")
            .arg(self.prefix.join("include"))
            .arg("-L")
            .arg(&lib);
        visible(
            compile
                .arg("-lmoxin_vlm")
                .arg(format!("-Wl,-rpath,{}", lib.display()))
                .arg("-o")
                .arg(&program),
        )?;
        let mut describe = Command::new(program);
        describe
            .arg("--json")
            .args(["models/tiny", "models/demo.png"])
            .args(QUESTIONS.iter().flat_map(|question| ["--prompt", question]));
        let output = describe
            .current_dir(&self.repository)
            .env("OPENBLAS_NUM_THREADS", "1")
            .output()
            .context("cannot run describe")?;
        serde_json::from_slice::<Value>(&output.stdout)
            .context("what examples/c/describe.c printed")?;
        let file = self.folder.join("c-answers.json");
        fs::write(&file, output.stdout)?;
        Ok(file)
    }

    /// Runs the command-line example.
    pub fn example(&self) -> Result<()> {
        let mut describe = self.swift("run", &self.repository);
        answers(
            describe
                .args(STRICT)
                .args(["describe", "models/demo.png", QUESTION]),
        )
    }

    /// Tests the app's logic, without views.
    pub fn app(&self) -> Result<()> {
        let app = self.repository.join(APP);
        without_warnings(self.swift("build", &app).arg("--build-tests").args(STRICT))?;
        visible(
            self.swift("test", &app)
                .args(["--skip-build", "--disable-xctest"])
                .args(STRICT),
        )
    }

    /// Checks what is possible without Apple's frameworks: views are parsed; observable sources are
    /// compiled, and only their linking fails on Linux.
    pub fn apple_sources(&self) -> Result<()> {
        let mut views: Vec<_> = fs::read_dir(self.repository.join(VIEWS))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        views.sort();
        without_warnings(
            self.command("swiftc", &self.repository)
                .args(["-frontend", "-parse"])
                .args(views),
        )?;

        let folder = self.folder.join("observable");
        fs::create_dir_all(&folder)?;
        let mut check = self.command("swiftc", &folder);
        check.args([
            "-typecheck",
            "-parse-as-library",
            "-swift-version",
            "6",
            "-warnings-as-errors",
            "-module-name",
            "Observable",
            "-I",
        ]);
        check
            .arg(self.products(&self.repository).join("debug/Modules"))
            .arg("-I")
            .arg(self.prefix.join("include"));
        for source in OBSERVABLE {
            let text = fs::read_to_string(self.repository.join(source))?;
            ensure!(
                text.contains("#if canImport(Darwin)\n    @Observable\n"),
                "{source} is not observable"
            );
            let file = folder.join(
                Path::new(source)
                    .file_name()
                    .context("a source without a name")?,
            );
            fs::write(
                &file,
                format!(
                    "import MoxinVLM\n{}",
                    text.replace("canImport(Darwin)", "true")
                ),
            )?;
            check.arg(file);
        }
        without_warnings(&mut check).map(|_| ())
    }

    /// Builds the README's program, as a package that depends on this one by a tag.
    pub fn dependent(&self) -> Result<()> {
        let folder = self.folder.join("dependent");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        let (package, program) = (folder.join("moxin-vlm"), folder.join("ask"));
        let version = self.tag(&package)?;
        fs::create_dir_all(&program)?;
        let readme = fs::read_to_string(self.repository.join("README.md"))?;
        let (manifest, source) =
            readme_program(&readme).context("README.md has no Swift package")?;
        let by_path = ".package(path: \"../moxin-vlm\")";
        ensure!(
            manifest.contains(by_path),
            "README.md's package does not depend on this one"
        );
        let by_tag = format!(
            ".package(url: \"file://{}\", exact: \"{version}\")",
            package.display()
        );
        fs::write(
            program.join("Package.swift"),
            manifest.replace(by_path, &by_tag),
        )?;
        fs::write(program.join("main.swift"), source)?;
        // A tag that moved is refused by whoever has seen it before, so nothing of earlier runs may
        // remain.
        let mut run = self.command("swift", &program);
        answers(
            run.env("HOME", folder.join("home"))
                .args(["run", "--scratch-path"])
                .arg(folder.join("build"))
                .args(STRICT),
        )
    }

    /// Makes a repository of the package in its current state, with its version as a tag.
    fn tag(&self, package: &Path) -> Result<String> {
        let version = cargo::version(&cargo::metadata(&["--no-deps"])?)?;

        let git = |folder: &Path, arguments: &[&str]| -> Result<String> {
            let output = Command::new("git")
                .arg("-C")
                .arg(folder)
                .args(arguments)
                .output()
                .context("cannot run git")?;
            ensure!(
                output.status.success(),
                "git {}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let listed = [
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "Package.swift",
            "swift",
            "models",
        ];
        for name in git(&self.repository, &listed)?
            .lines()
            .filter(|name| self.repository.join(name).is_file())
        {
            let copy = package.join(name);
            fs::create_dir_all(copy.parent().context("a file without a folder")?)?;
            fs::copy(self.repository.join(name), copy)?;
        }
        git(package, &["init", "--quiet"])?;
        git(package, &["add", "--all"])?;
        git(
            package,
            &[
                "-c",
                "user.name=test",
                "-c",
                "user.email=test@localhost",
                "commit",
                "--quiet",
                "--message",
                "test",
            ],
        )?;
        git(package, &["tag", &version])?;
        Ok(version)
    }

    /// Builds the documentation, without a warning and without an undocumented public name.
    pub fn documentation(&self) -> Result<()> {
        // In a folder of its own: other flags would rebuild everything.
        let build = self.folder.join("build/documentation");
        let mut dump = self.command("swift", &self.repository);
        dump.args(["package", "--scratch-path"]).arg(&build).args([
            "dump-symbol-graph",
            "--minimum-access-level",
            "public",
        ]);
        without_warnings(dump.arg("--skip-synthesized-members"))?;
        let graphs = build
            .join("debug")
            .canonicalize()?
            .with_file_name("symbolgraph");
        let graph: Value =
            serde_json::from_str(&fs::read_to_string(graphs.join("MoxinVLM.symbols.json"))?)?;
        let bare = undocumented(&graph);
        ensure!(
            bare.is_empty(),
            "without documentation: {}",
            bare.join(", ")
        );

        let mut docc = self.command("docc", &self.repository);
        docc.args([
            "convert",
            CATALOGUE,
            "--warnings-as-errors",
            "--fallback-display-name",
            "MoxinVLM",
        ]);
        docc.args([
            "--fallback-bundle-identifier",
            "moxin.vlm",
            "--additional-symbol-graph-dir",
        ])
        .arg(graphs);
        without_warnings(
            docc.arg("--output-path")
                .arg(self.folder.join("documentation")),
        )?;
        println!("{}", self.folder.join("documentation").display());
        Ok(())
    }
}

/// Runs a program that must print the expected answer.
fn answers(command: &mut Command) -> Result<()> {
    let text = without_warnings(command)?;
    if !text.contains(ANSWER) {
        bail!("the answer is not {ANSWER:?}:\n{text}");
    }
    Ok(())
}

/// Returns Package.swift and main.swift of the README's Swift section.
fn readme_program(readme: &str) -> Option<(&str, &str)> {
    let mut blocks = readme
        .split("```swift\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("```"))
        .map(|(block, _)| block);
    Some((blocks.next()?, blocks.next()?))
}

/// Returns names without documentation, except for those that conformances bring.
fn undocumented(graph: &Value) -> Vec<String> {
    const INHERITED: [&str; 8] = [
        "Element",
        "AsyncIterator",
        "makeAsyncIterator()",
        "Iterator",
        "unownedExecutor",
        "hash(into:)",
        "encode(to:)",
        "init(from:)",
    ];
    let symbols = graph["symbols"].as_array().into_iter().flatten();
    let bare = symbols.filter(|symbol| symbol["docComment"].is_null());
    let names = bare.filter_map(|symbol| {
        let path = symbol["pathComponents"]
            .as_array()?
            .iter()
            .filter_map(Value::as_str)
            .collect::<Vec<_>>();
        (!INHERITED.contains(path.last()?)).then(|| path.join("."))
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_documentation_are_found() {
        let graph = serde_json::json!({ "symbols": [
            { "pathComponents": ["A"], "docComment": {} },
            { "pathComponents": ["A", "b"] },
            { "pathComponents": ["A", "Iterator"] },
        ]});
        assert_eq!(undocumented(&graph), ["A.b"]);
    }

    #[test]
    fn the_readme_has_a_manifest_and_a_program() {
        assert_eq!(
            readme_program("a\n```swift\nlet\n```\nb\n```swift\nvar\n```\n"),
            Some(("let\n", "var\n"))
        );
        assert_eq!(readme_program("```c\nint\n```\n"), None);
    }
}
