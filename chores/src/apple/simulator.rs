//! The slice for the iOS simulator, where MLX does not run: every function of the header, in C; all
//! that can fail return BACKEND_UNAVAILABLE. An app links and starts there, and reports the reason.

use anyhow::{Context, Result, bail};

use crate::dist;
use crate::reference::header::{Item, Shape, parse};

const WHY: &str = "MLX does not run in the iOS simulator: run the app on a device, or on a Mac";

/// Returns the source of the slice.
pub fn source(version: &str) -> Result<String> {
    let header = dist::header()?;
    let mut text = "#include \"moxin_vlm.h\"\n#include <string.h>\n\n/* What every error points \
        to. */\nstatic char why;\n"
        .to_owned();
    for item in parse(&header)?.items {
        if let Shape::Function(declaration) = &item.shape {
            text += &format!(
                "\n{}\n{{\n{}}}\n",
                declaration.trim_end().trim_end_matches(';'),
                body(&item, declaration, version)?
            );
        }
    }
    Ok(text)
}

/// Returns the body of a function.
fn body(item: &Item, declaration: &str, version: &str) -> Result<String> {
    let returned = declaration
        .split(item.name.as_str())
        .next()
        .unwrap_or_default()
        .trim();
    let line = |text: &str| -> Result<String> { Ok(format!("    {text}\n")) };
    match item.name.as_str() {
        "moxin_abi_version" => line("return MOXIN_ABI_VERSION;"),
        "moxin_version" => line(&format!("return \"{version}\";")),
        "moxin_build_info" => line("return \"for the iOS simulator, without MLX\";"),
        "moxin_status_name" => line(
            "return status == MOXIN_STATUS_OK ? \"OK\" : \
         \"BACKEND_UNAVAILABLE\";",
        ),
        "moxin_error_status" => line(
            "return error ? MOXIN_STATUS_BACKEND_UNAVAILABLE : \
         MOXIN_STATUS_OK;",
        ),
        "moxin_error_message" => line(&format!(
            "return (struct \
         moxin_str){{error ? \"{WHY}\" : \"\", error ? {} : 0}};",
            WHY.len()
        )),
        // A handle that nothing reads.
        "moxin_cancel_new" => line("return (struct moxin_cancel *)&why;"),
        name if name.ends_with("_params_init") => line(
            "memset(params, 0, \
                struct_size);",
        )
        .and_then(|zero| Ok(zero + &line("params->struct_size = struct_size;")?)),
        _ => match returned {
            "void" => Ok(String::new()),
            "bool" => line("return false;"),
            "size_t" => line("return 0;"),
            // Functions without an error set something up for work that never happens.
            "enum moxin_status" if !declaration.contains("**error") => {
                line("return MOXIN_STATUS_OK;")
            }
            "enum moxin_status" => {
                let destroy = if declaration.contains(" destroy") {
                    "    if (destroy)\n        \
                    destroy(user_data);\n"
                } else {
                    ""
                };
                let error = "    if (error)\n        *error = (struct moxin_error *)&why;\n    \
                    return MOXIN_STATUS_BACKEND_UNAVAILABLE;\n";
                Ok(format!("{destroy}{error}"))
            }
            pointer if pointer.ends_with('*') => line("return NULL;"),
            other => bail!(
                "{} returns {other}: add to simulator.rs what it returns where MLX does not run",
                item.name
            ),
        },
    }
    .with_context(|| format!("the simulator's {}", item.name))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;
    use crate::setup;

    /// A C program gets a clear answer. The C compiler checks that every function of the header
    /// exists.
    #[test]
    fn a_program_is_told_that_the_simulator_has_no_mlx() {
        let folder = tempfile::tempdir().unwrap();
        let (stub, program) = (
            folder.path().join("stub.c"),
            folder.path().join("program.c"),
        );
        fs::write(&stub, source("1.2.3").unwrap()).unwrap();
        fs::write(
            &program,
            r#"#include "moxin_vlm.h"
            #include <stdio.h>
            #include <string.h>
            static void destroyed(void *data) { ++*(int *)data; }
            int main(void) {
                struct moxin_error *error = NULL;
                struct moxin_model *model = NULL;
                struct moxin_model_params params;
                int count = 0;
                moxin_model_params_init(&params, sizeof params);
                if (moxin_model_load("x", &params, NULL, &model, &error) != MOXIN_STATUS_BACKEND_UNAVAILABLE || model || !error) return 1;
                if (moxin_set_log(NULL, 0, &count, destroyed, NULL) != MOXIN_STATUS_BACKEND_UNAVAILABLE || count != 1) return 2;
                if (moxin_abi_version() != MOXIN_ABI_VERSION || strcmp(moxin_version(), "1.2.3")) return 3;
                puts(moxin_error_message(error).data);
                moxin_error_free(error);
                return 0;
            }"#,
        )
        .unwrap();
        let built = folder.path().join("program");
        let mut compile = Command::new("cc");
        compile
            .args(["-std=c99", "-Wall", "-Werror", "-I"])
            .arg(setup::repository().join("include"))
            .args([&stub, &program]);
        assert!(compile.arg("-o").arg(&built).status().unwrap().success());
        let output = Command::new(built).output().unwrap();
        assert!(output.status.success(), "{:?}", output.status);
        assert!(
            String::from_utf8_lossy(&output.stdout)
                .starts_with("MLX does not run in the iOS simulator")
        );
    }
}
