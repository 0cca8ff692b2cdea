// Validates an AsyncAPI document with the official parser; `node validate.mjs FILE` prints what is wrong, one
// problem a line, and exits 1 if there is an error. References to files beside the document are followed.
import { readFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { Parser, DiagnosticSeverity } from '@asyncapi/parser';

const source = resolve(process.argv[2] ?? '../asyncapi.json');
const { document, diagnostics } = await new Parser().parse(await readFile(source, 'utf8'), { source });

for (const { severity, code, path, message } of diagnostics) {
  console.log(`${DiagnosticSeverity[severity] ?? severity} ${code} at ${path.join('.') || 'the root'}: ${message}`);
}
if (document === undefined || diagnostics.some(({ severity }) => severity === DiagnosticSeverity.Error)) {
  process.exitCode = 1;
} else {
  console.log(JSON.stringify({
    asyncapi: document.version(),
    channels: document.channels().all().map((channel) => channel.address()),
    messages: document.messages().all().map((message) => message.id()).sort(),
    operations: document.operations().all().length,
  }));
}
